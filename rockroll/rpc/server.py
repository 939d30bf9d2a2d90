"""The answering end of calls: handlers by method name.

In: frames from any number of peers. Out: what the handlers return or yield, or the RockrollError they raised. Leaves
what the bodies mean to the handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from inspect import isasyncgen
from pathlib import Path
from typing import Any

import msgspec
import zmq

from rockroll.errors import RemoteError, RockrollError
from rockroll.rpc.departures import Departures
from rockroll.rpc.frame import (
    CALL,
    CANCEL,
    CHUNK,
    END,
    ERROR,
    HELLO,
    LAST,
    MORE,
    OPEN,
    PART,
    REPLY,
    UNREADABLE,
    Credit,
    Failure,
    Frame,
    Inbox,
    Link,
    decode,
    decode_count,
    frame,
    hello,
    misfit,
)
from rockroll.rpc.keys import serve_with
from rockroll.rpc.line import Line
from rockroll.rpc.stream import AcceptedStream, Stream, answers
from rockroll.rpc.trunk import Trunk, parsed
from rockroll.rpc.zeromq import ZmqLink, ZmqPort

Handler = Callable[..., Any]
_log = logging.getLogger(__name__)
PROBE_AGAIN_S = (0.05, 0.5)


@dataclass(eq=False)
class Peer:
    """Who is at the other end of a server's link. pid and uid are the kernel's word on unix sockets, else None."""

    id: str
    link: Link
    pid: int | None = None
    uid: int | None = None
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    parts: dict[int, Inbox] = field(default_factory=dict)
    credits: dict[int, Credit] = field(default_factory=dict)
    refused: str | None = "it has not said which wire version it speaks"
    """Why its calls are refused; None: it has said HELLO, and speaks as we do."""

    def forget(self, call_id: int) -> None:
        """A call is over. Not at the end of its task's own code: one that is cancelled at once never runs that."""
        for of_calls in (self.tasks, self.parts, self.credits):
            of_calls.pop(call_id, None)


class Parts:
    """What the caller sends after the body: `async for part in parts.of(Type)`, once. At most WINDOW wait here."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def of(self, type: Any = Any) -> AsyncIterator[Any]:
        """Each part, decoded to `type`. A misfit is a RockrollError."""
        while (raw := await self._inbox.get()) is not None:
            try:
                yield msgspec.msgpack.decode(raw, type=type)
            except msgspec.ValidationError as error:
                raise RockrollError(f"a part of this call is not what it should be: {error}") from None


class Server:
    """Answers calls at one address.

    handlers: method -> `async def h(body, peer)` or an async generator of the same arguments; what is called with
    parts takes them as a third: `async def h(body, peer, parts: Parts)`.
    types: method -> the type its body is decoded to (default: plain msgpack types); a misfit is refused.
    on_disconnect: called with the peer when its link ends, or the hub says that it is gone; its calls are cancelled. A
    ZeroMQ client that comes back is another peer.
    key: as in `connect`; made where it is missing.
    """

    def __init__(
        self,
        address: str,
        handlers: Mapping[str, Handler],
        *,
        types: Mapping[str, Any] | None = None,
        on_connect: Callable[[Peer], None] | None = None,
        on_disconnect: Callable[[Peer], Awaitable[None] | None] | None = None,
        key: Path | None = None,
    ) -> None:
        self.address = address
        self._key = key
        self._handlers = dict(handlers)
        self._types = dict(types or {})
        self._on_connect, self._on_disconnect = on_connect, on_disconnect
        self._peers: dict[str, Peer] = {}
        self._own: set[asyncio.Task[Any]] = set()
        self._ids = itertools.count(1)
        self._unix: asyncio.AbstractServer | None = None
        self._port: ZmqPort | None = None
        self._trunk: Trunk | None = None
        self._departures: Departures | None = None
        self._followed: set[bytes] = set()
        """Trunks that are peers, whose end the hub is asked for."""
        self._probes: set[asyncio.TimerHandle] = set()

    def add(self, handlers: Mapping[str, Handler]) -> None:
        """More methods, before `start`."""
        self._handlers.update(handlers)

    @property
    def peers(self) -> list[Peer]:
        return list(self._peers.values())

    async def start(self) -> None:
        """Binds the address. RockrollError when it is taken or its folder is missing."""
        scheme, _, place = self.address.partition("://")
        try:
            if scheme == "unix":
                await self._listen_unix(place)
            elif scheme == "hub":
                name, hub, public = parsed(self.address)
                trunk = self._trunk = Trunk(hub, public, on_line=self._accept_line, name=name)
                self._departures = Departures(trunk)
                await trunk.open()
            else:
                port = ZmqPort(zmq.ROUTER, self._on_message, lambda: None, self._someone_gone, asks=scheme == "tcp")
                port.sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
                try:
                    serve_with(port.sock, self.address, self._key)
                    port.sock.bind(self.address)
                    if scheme == "tcp":  # port 0 is any free one
                        self.address = port.sock.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
                except BaseException:
                    port.close()
                    raise
                if scheme == "ipc":
                    Path(place).chmod(0o600)
                self._port = port
                port.open()
        except (OSError, zmq.ZMQError) as error:
            raise RockrollError(f"cannot listen at {self.address}: {error}; is another rockroll using it?") from error

    def _accept_line(self, name: bytes, line: Line) -> None:
        peer = self.join(name.hex(), line)
        line.on_frame = lambda data: self.hear(peer, data)
        line.on_ended = lambda: self.hush(peer)
        if name not in self._followed:
            self._followed.add(name)
            self._spawn(self._until_gone(name))

    async def _until_gone(self, name: bytes) -> None:
        """A peer that came through the hub leaves when the hub says that it is gone."""
        assert self._trunk is not None and self._departures is not None
        try:
            await self._departures.of(name)
        except RockrollError as error:
            _log.warning("rpc: the end of peer %s would not be known: %s", name.hex(), error)
            return
        finally:
            self._followed.discard(name)
        self._trunk.end(name)
        if (peer := self._peers.get(name.hex())) is not None:
            self.leave(peer)

    async def _listen_unix(self, path: str) -> None:
        if len(os.fsencode(path)) > 107:
            raise RockrollError(f"a unix socket's path has at most 107 bytes; {path} has more: set XDG_RUNTIME_DIR")
        loop = asyncio.get_running_loop()
        if answers(path):  # asyncio would unlink a live server's socket without a word
            raise OSError(errno.EADDRINUSE, "a live server answers there")
        Path(path).unlink(missing_ok=True)  # left by a server that was killed
        self._unix = await loop.create_unix_server(self._accept, path)
        Path(path).chmod(0o600)

    def _accept(self) -> asyncio.BaseProtocol:
        peer: Peer

        def lost() -> None:
            self._drop(peer)

        stream = AcceptedStream(lambda data: self._on_frame(peer, data), lost, lambda: self._greet(peer))
        peer = Peer(id=f"u{next(self._ids)}", link=stream)
        return stream

    def _greet(self, peer: Peer) -> None:
        assert isinstance(peer.link, Stream) and peer.link.transport is not None
        sock = peer.link.transport.get_extra_info("socket")
        creds = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        peer.pid, peer.uid, _ = struct.unpack("3i", creds)
        self._peers[peer.id] = peer
        if self._on_connect:
            self._on_connect(peer)

    # -- peers that come another way than through this server's address (trunk.py)

    def join(self, name: str, link: Link) -> Peer:
        """A peer whose frames come by `hear`. Where one of that name has joined, its link has broken: what ran for it
        is cancelled, and what it owns stays its own until `leave`."""
        before = self._peers.get(name)
        peer = self._peers[name] = Peer(id=name, link=link)  # a new one: its calls are numbered from 1 again
        if before is not None:
            self.hush(before)
        elif self._on_connect:
            self._on_connect(peer)
        return peer

    def hear(self, peer: Peer, data: bytes) -> None:
        """A frame of a peer that has joined."""
        self._on_frame(peer, data)

    def hush(self, peer: Peer) -> None:
        """Cancels what runs for it."""
        for task in list(peer.tasks.values()):
            task.cancel()

    def leave(self, peer: Peer) -> None:
        """It will not come back. A second time nothing happens."""
        if self._peers.get(peer.id) is peer:
            self._drop(peer)

    def _drop(self, peer: Peer) -> None:
        self._peers.pop(peer.id, None)
        self.hush(peer)
        if self._on_disconnect and (done := self._on_disconnect(peer)) is not None:
            self._spawn(_awaited(done))

    def _on_message(self, parts: list[bytes]) -> None:
        identity, data = parts[:2]
        name = identity.hex()
        peer = self._peers.get(name)
        if peer is None:
            assert self._port is not None
            link = ZmqLink(self._port, identity, lambda: self._gone(name))
            peer = self._peers[name] = Peer(id=name, link=link)
            if self._on_connect:
                self._on_connect(peer)
        self._on_frame(peer, data)

    def _someone_gone(self) -> None:
        """One ZeroMQ client's connection has ended, and ZeroMQ does not say whose: each is greeted, and the one that is
        gone cannot be. Again a little later, for the socket may hear of it after its monitor."""
        self._greet_all()
        for seconds in PROBE_AGAIN_S:
            self._probes.add(asyncio.get_running_loop().call_later(seconds, self._greet_all))

    def _greet_all(self) -> None:
        now = asyncio.get_running_loop().time()
        self._probes = {each for each in self._probes if not each.cancelled() and each.when() > now}
        for peer in self.peers:
            if isinstance(peer.link, ZmqLink):
                peer.link.send(hello())

    def _gone(self, name: str) -> None:
        if (peer := self._peers.get(name)) is not None:
            self._drop(peer)

    def _on_frame(self, peer: Peer, data: bytes | bytearray) -> None:
        try:
            self._on_call(peer, decode(data))
        except UNREADABLE as error:
            _log.error("rpc: peer %s sent a frame that cannot be read: %s", peer.id, error)

    def _on_call(self, peer: Peer, call: Frame) -> None:
        if call.kind == HELLO:
            peer.link.send(hello())
            peer.refused = misfit(call.id, call.method)
            if peer.refused:
                _log.error("rpc: peer %s at %s is refused: %s", peer.id, self.address, peer.refused)
        elif peer.refused:
            if call.kind in (CALL, OPEN):
                peer.link.send(frame(ERROR, call.id, body=Failure("WireMisfit", peer.refused, {})))
        elif call.kind == CANCEL:
            if task := peer.tasks.get(call.id):
                task.cancel()
        elif call.kind in (CALL, OPEN) and call.id not in peer.tasks:
            if call.kind == OPEN:
                peer.parts[call.id] = Inbox(lambda count: peer.link.send(frame(MORE, call.id, body=count)))
            task = asyncio.get_running_loop().create_task(self._serve(peer, call))
            peer.tasks[call.id] = task
            task.add_done_callback(lambda _: peer.forget(call.id))
        elif call.kind in (PART, LAST):
            if inbox := peer.parts.get(call.id):  # else it is over, and the caller does not know yet
                inbox.put(call.body if call.kind == PART else None)
        elif call.kind == MORE and (credit := peer.credits.get(call.id)):
            credit.add(decode_count(call.body))

    async def _serve(self, peer: Peer, call: Frame) -> None:
        link = peer.link
        try:
            handler = self._handlers.get(call.method)
            if handler is None:
                raise RockrollError(f"no method {call.method!r} at {self.address}")
            try:
                body = msgspec.msgpack.decode(call.body, type=self._types.get(call.method, Any))
            except UNREADABLE as error:
                raise RemoteError(f"{call.method}: the body of this call is not what it should be: {error}") from None
            inbox = peer.parts.get(call.id)
            result = handler(body, peer, Parts(inbox)) if inbox else handler(body, peer)
            if isasyncgen(result):
                credit = peer.credits[call.id] = Credit()
                try:
                    async for item in result:
                        try:
                            await credit.take()
                            link.send(frame(CHUNK, call.id, body=item))
                            await link.drain()
                        except asyncio.CancelledError as stop:
                            # As if it had come at an await of the handler's own, which may have asked for it.
                            with contextlib.suppress(StopAsyncIteration):
                                await result.athrow(stop)
                            break
                finally:
                    await result.aclose()
                link.send(frame(END, call.id))
            else:
                link.send(frame(REPLY, call.id, body=await result))
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            # Nobody has cancelled the call: what the handler waited for was, and its caller would wait for ever.
            said = f"{call.method}: what it waited for was cancelled"
            link.send(frame(ERROR, call.id, body=Failure("RemoteError", said, {})))
        except RockrollError as error:
            link.send(frame(ERROR, call.id, body=Failure(type(error).__name__, error.message, error.fields)))
        except Exception as error:  # noqa: BLE001 - a handler's bug must reach its caller, whatever it is
            _log.exception("rpc: %s failed", call.method)
            said = f"{call.method}: {type(error).__name__}: {error}"
            link.send(frame(ERROR, call.id, body=Failure("RemoteError", said, {})))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._own.add(task)
        task.add_done_callback(self._own.discard)

    async def close(self) -> None:
        """Stops listening, cancels what runs, closes every link and removes the socket's file."""
        if self._unix is not None:
            self._unix.close()
        tasks = [*self._own, *(t for p in self._peers.values() for t in p.tasks.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for peer in self.peers:
            if isinstance(peer.link, Stream):
                peer.link.close()
        for probe in self._probes:
            probe.cancel()
        self._probes.clear()
        if self._port is not None:
            self._port.close()
        if self._trunk is not None:
            self._trunk.close()
        scheme, _, place = self.address.partition("://")
        if scheme in ("unix", "ipc") and (self._unix or self._port):  # else it is another server's
            Path(place).unlink(missing_ok=True)


async def _awaited(work: Awaitable[None]) -> None:
    await work
