"""Calls, streams and cancellation between the processes of one run.

In: an address (`unix://PATH`, `ipc://PATH`, `tcp://HOST:PORT`) and handlers by method name. Out: their replies, or the
same RockrollError that the handler raised. Leaves it to others what the bodies mean and who starts the processes.

`unix://` is a stream socket: 0.1 ms a call, the kernel's word on who calls (SO_PEERCRED), and an end-of-file when the
other side dies. `ipc://` and `tcp://` are ZeroMQ DEALER (client) and ROUTER (server): a client may come before its
server and survives the server's restart. Frames are the same on both: one msgpack array (kind, id, method, body).

    CALL ──► REPLY | ERROR          a coroutine handler
    CALL ──► CHUNK* ──► END | ERROR an async generator handler
    CANCEL                          the caller lost interest; the handler's task is cancelled, nothing comes back
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from inspect import isasyncgen
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, overload

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from rockroll.errors import PeerLost, RockrollError, by_name

T = TypeVar("T")
Handler = Callable[..., Any]
MAX_MESSAGE = 256 * 2**20
_CALL, _REPLY, _CHUNK, _END, _ERROR, _CANCEL = range(1, 7)
_log = logging.getLogger(__name__)


class _Frame(msgspec.Struct, array_like=True):
    kind: int
    id: int
    method: str = ""
    body: msgspec.Raw = msgspec.Raw(b"\xc0")


class _Failure(msgspec.Struct):
    name: str
    message: str
    fields: dict[str, Any]


_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(_Frame).decode


def _frame(kind: int, call_id: int, method: str = "", body: Any = None) -> bytes:
    return _encode(_Frame(kind, call_id, method, msgspec.Raw(_encode(body))))


class _Link(Protocol):
    """One way to bring frames to the other side."""

    def send(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...


@dataclass(eq=False)
class Peer:
    """Who is at the other end of a server's link. pid and uid are the kernel's word on unix sockets, else None."""

    id: str
    link: _Link
    pid: int | None = None
    uid: int | None = None
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------------
# Unix stream sockets: four bytes of length, then the frame.
# ---------------------------------------------------------------------------------------------------------------


class _Stream(asyncio.Protocol):
    def __init__(self, on_frame: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._on_frame, self._on_lost = on_frame, on_lost
        self._buffer = bytearray()
        self._writable = asyncio.Event()
        self._writable.set()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            (size,) = struct.unpack_from(">I", buffer, start)
            if size > MAX_MESSAGE:
                _log.error("rpc: a message of %d bytes is over the limit of %d; closing the link", size, MAX_MESSAGE)
                assert self.transport is not None
                self.transport.abort()
                return
            if len(buffer) - start - 4 < size:
                break
            frame = bytes(memoryview(buffer)[start + 4 : start + 4 + size])
            start += 4 + size
            self._on_frame(frame)
        del buffer[:start]

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._on_lost()

    def send(self, data: bytes) -> None:
        assert self.transport is not None
        if len(data) > MAX_MESSAGE:
            raise RockrollError(f"a message may have {MAX_MESSAGE} bytes, this one has {len(data)}; send it in parts")
        self.transport.write(struct.pack(">I", len(data)) + data)

    async def drain(self) -> None:
        await self._writable.wait()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


# ---------------------------------------------------------------------------------------------------------------
# ZeroMQ
# ---------------------------------------------------------------------------------------------------------------


def _zmq_socket(kind: int) -> zmq.asyncio.Socket:
    sock = zmq.asyncio.Context.instance().socket(kind)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
    sock.setsockopt(zmq.SNDHWM, 10_000)
    sock.setsockopt(zmq.RCVHWM, 10_000)
    return sock


class _ZmqLink:
    """Frames out in order, through one queue, so that a full socket holds its sender and nobody else."""

    def __init__(self, sock: zmq.asyncio.Socket, prefix: list[bytes]) -> None:
        self._sock, self._prefix = sock, prefix
        self._last: asyncio.Future[Any] | None = None

    def send(self, data: bytes) -> None:
        if not self._sock.closed:
            self._last = sending = asyncio.ensure_future(self._sock.send_multipart([*self._prefix, data]))
            sending.add_done_callback(_sent)

    async def drain(self) -> None:
        if self._last is not None and not self._last.done():
            await asyncio.wait([self._last])


def _sent(sending: asyncio.Future[Any]) -> None:
    if sending.cancelled() or (error := sending.exception()) is None:
        return
    if isinstance(error, zmq.ZMQError) and error.errno == zmq.EHOSTUNREACH:
        return  # the peer is gone; nobody waits for this reply
    _log.error("rpc: a frame could not be sent: %s", error)


# ---------------------------------------------------------------------------------------------------------------
# Server
# ---------------------------------------------------------------------------------------------------------------


class Server:
    """Answers calls at one address.

    handlers: method -> `async def h(body, peer)` or an async generator of the same arguments.
    types: method -> the type its body is decoded to (default: plain msgpack types); a misfit is refused.
    on_disconnect: called with the peer when a unix peer's link ends (never for ZeroMQ, whose peers come and go).
    """

    def __init__(
        self,
        address: str,
        handlers: Mapping[str, Handler],
        *,
        types: Mapping[str, Any] | None = None,
        on_connect: Callable[[Peer], None] | None = None,
        on_disconnect: Callable[[Peer], Awaitable[None] | None] | None = None,
    ) -> None:
        self.address = address
        self._handlers = dict(handlers)
        self._types = dict(types or {})
        self._on_connect, self._on_disconnect = on_connect, on_disconnect
        self._peers: dict[str, Peer] = {}
        self._own: set[asyncio.Task[Any]] = set()
        self._ids = itertools.count(1)
        self._unix: asyncio.AbstractServer | None = None
        self._zmq: zmq.asyncio.Socket | None = None

    @property
    def peers(self) -> list[Peer]:
        return list(self._peers.values())

    async def start(self) -> None:
        """Binds the address. RockrollError when it is taken or its folder is missing."""
        scheme, _, place = self.address.partition("://")
        try:
            if scheme == "unix":
                await self._listen_unix(place)
            else:
                sock = _zmq_socket(zmq.ROUTER)
                sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
                sock.bind(self.address)
                if scheme == "ipc":
                    Path(place).chmod(0o600)
                self._zmq = sock
                self._spawn(self._receive_zmq(sock))
        except (OSError, zmq.ZMQError) as error:
            raise RockrollError(f"cannot listen at {self.address}: {error}; is another rockroll using it?") from error

    async def _listen_unix(self, path: str) -> None:
        if len(os.fsencode(path)) > 107:
            raise RockrollError(f"a unix socket's path has at most 107 bytes; {path} has more: set XDG_RUNTIME_DIR")
        loop = asyncio.get_running_loop()
        if _answers(path):  # asyncio would unlink a live server's socket without a word
            raise OSError(errno.EADDRINUSE, "a live server answers there")
        Path(path).unlink(missing_ok=True)  # left by a server that was killed
        self._unix = await loop.create_unix_server(self._accept, path)
        Path(path).chmod(0o600)

    def _accept(self) -> asyncio.Protocol:
        peer: Peer

        def lost() -> None:
            self._drop(peer)

        stream = _AcceptedStream(lambda data: self._on_frame(peer, data), lost, lambda: self._greet(peer))
        peer = Peer(id=f"u{next(self._ids)}", link=stream)
        return stream

    def _greet(self, peer: Peer) -> None:
        assert isinstance(peer.link, _Stream) and peer.link.transport is not None
        sock = peer.link.transport.get_extra_info("socket")
        creds = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        peer.pid, peer.uid, _ = struct.unpack("3i", creds)
        self._peers[peer.id] = peer
        if self._on_connect:
            self._on_connect(peer)

    def _drop(self, peer: Peer) -> None:
        self._peers.pop(peer.id, None)
        for task in list(peer.tasks.values()):
            task.cancel()
        if self._on_disconnect and (done := self._on_disconnect(peer)) is not None:
            self._spawn(_awaited(done))

    async def _receive_zmq(self, sock: zmq.asyncio.Socket) -> None:
        while True:
            identity, data = (await sock.recv_multipart())[:2]
            name = identity.hex()
            peer = self._peers.get(name)
            if peer is None:
                peer = self._peers[name] = Peer(id=name, link=_ZmqLink(sock, [identity]))
                if self._on_connect:
                    self._on_connect(peer)
            self._on_frame(peer, data)

    def _on_frame(self, peer: Peer, data: bytes) -> None:
        try:
            frame = _decode_frame(data)
        except msgspec.DecodeError as error:
            _log.error("rpc: peer %s sent a frame that cannot be read: %s", peer.id, error)
            return
        if frame.kind == _CANCEL:
            if task := peer.tasks.get(frame.id):
                task.cancel()
        elif frame.kind == _CALL and frame.id not in peer.tasks:
            task = asyncio.get_running_loop().create_task(self._serve(peer, frame))
            peer.tasks[frame.id] = task
            task.add_done_callback(lambda _: peer.tasks.pop(frame.id, None))

    async def _serve(self, peer: Peer, frame: _Frame) -> None:
        link = peer.link
        try:
            handler = self._handlers.get(frame.method)
            if handler is None:
                raise RockrollError(f"no method {frame.method!r} at {self.address}")
            body = msgspec.msgpack.decode(frame.body, type=self._types.get(frame.method, Any))
            result = handler(body, peer)
            if isasyncgen(result):
                try:
                    async for item in result:
                        link.send(_frame(_CHUNK, frame.id, body=item))
                        await link.drain()
                finally:
                    await result.aclose()
                link.send(_frame(_END, frame.id))
            else:
                link.send(_frame(_REPLY, frame.id, body=await result))
        except asyncio.CancelledError:
            raise
        except RockrollError as error:
            link.send(_frame(_ERROR, frame.id, body=_Failure(type(error).__name__, error.message, error.fields)))
        except Exception as error:  # noqa: BLE001 - a handler's bug must reach its caller, whatever it is
            _log.exception("rpc: %s failed", frame.method)
            said = f"{frame.method}: {type(error).__name__}: {error}"
            link.send(_frame(_ERROR, frame.id, body=_Failure("RemoteError", said, {})))

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
            if isinstance(peer.link, _Stream):
                peer.link.close()
        if self._zmq is not None:
            self._zmq.close(0)
        scheme, _, place = self.address.partition("://")
        if scheme in ("unix", "ipc"):
            Path(place).unlink(missing_ok=True)


class _AcceptedStream(_Stream):
    def __init__(
        self, on_frame: Callable[[bytes], None], on_lost: Callable[[], None], on_made: Callable[[], None]
    ) -> None:
        super().__init__(on_frame, on_lost)
        self._on_made = on_made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._on_made()


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


async def _awaited(work: Awaitable[None]) -> None:
    await work


# ---------------------------------------------------------------------------------------------------------------
# Client
# ---------------------------------------------------------------------------------------------------------------


class _Pending:
    """One call under way: a future for a reply, or a queue of chunks for a stream."""

    def __init__(self, stream: bool) -> None:
        self.reply: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self.chunks: asyncio.Queue[msgspec.Raw | None] | None = asyncio.Queue() if stream else None

    def fail(self, error: RockrollError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
            self.reply.exception()  # a stream may have been left: then nobody asks
        if self.chunks is not None:
            self.chunks.put_nowait(None)


class Client:
    """Calls methods at one address. Made by `connect`; belongs to one event loop."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.closed: RockrollError | None = None
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count(1)
        self._link: _Link
        self._stream: _Stream | None = None
        self._zmq: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.on_lost: Callable[[], None] | None = None

    async def _open(self) -> None:
        scheme, _, place = self.address.partition("://")
        if scheme == "unix":
            loop = asyncio.get_running_loop()
            try:
                _, stream = await loop.create_unix_connection(lambda: _Stream(self._on_frame, self._lost), place)
            except OSError as error:
                raise PeerLost(f"nothing answers at {self.address}: {error.strerror or error}") from error
            self._stream = self._link = stream
            return
        sock = self._zmq = _zmq_socket(zmq.DEALER)
        sock.setsockopt(zmq.RECONNECT_IVL, 50)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._monitor = monitor = sock.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            sock.connect(self.address)
        except zmq.ZMQError as error:
            self._close_zmq()
            raise RockrollError(
                f"an rpc address is unix://PATH, ipc://PATH or tcp://HOST:PORT; got {self.address!r} ({error})"
            ) from error
        self._link = _ZmqLink(sock, [])
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._receive_zmq(sock)), loop.create_task(self._watch_zmq(monitor))]

    async def _receive_zmq(self, sock: zmq.asyncio.Socket) -> None:
        while True:
            self._on_frame((await sock.recv_multipart())[-1])

    async def _watch_zmq(self, monitor: Any) -> None:
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())
            if event["event"] == zmq.EVENT_DISCONNECTED:
                self._fail_pending(PeerLost(f"the process at {self.address} closed the connection"))

    def _on_frame(self, data: bytes) -> None:
        frame = _decode_frame(data)
        pending = self._pending.get(frame.id)
        if pending is None:
            return  # cancelled meanwhile
        # frame.body points into `data`; a copy keeps only these bytes alive
        if frame.kind == _REPLY:
            if not pending.reply.done():
                pending.reply.set_result(frame.body)
        elif frame.kind == _CHUNK and pending.chunks is not None:
            pending.chunks.put_nowait(frame.body)
        elif frame.kind == _END:
            pending.fail(_END_OF_STREAM)
        elif frame.kind == _ERROR:
            failure = msgspec.msgpack.decode(frame.body, type=_Failure)
            pending.fail(by_name(failure.name)(failure.message, **failure.fields))

    def _lost(self) -> None:
        self.fail(PeerLost(f"the process at {self.address} closed the connection"))
        if self.on_lost:
            self.on_lost()

    def _fail_pending(self, error: RockrollError) -> None:
        for pending in list(self._pending.values()):
            pending.fail(error)

    def fail(self, error: RockrollError) -> None:
        """Every call under way, and every later one, raises `error`: the other process is known to be dead."""
        self.closed = self.closed or error
        self._fail_pending(error)

    def _begin(self, method: str, body: Any, stream: bool) -> tuple[int, _Pending]:
        if self.closed is not None:
            raise self.closed
        call_id, pending = next(self._ids), _Pending(stream)
        self._pending[call_id] = pending
        try:
            self._link.send(_frame(_CALL, call_id, method, body))
        except BaseException:
            del self._pending[call_id]
            raise
        return call_id, pending

    def _end(self, call_id: int, *, cancel: bool) -> None:
        if self._pending.pop(call_id, None) and cancel and self.closed is None:
            self._link.send(_frame(_CANCEL, call_id))

    @overload
    async def call(self, method: str, body: Any = None, *, timeout: float | None = None) -> Any: ...
    @overload
    async def call(self, method: str, body: Any = None, *, type: type[T], timeout: float | None = None) -> T: ...
    async def call(self, method: str, body: Any = None, *, type: Any = Any, timeout: float | None = None) -> Any:
        """One reply, decoded to `type`. Raises what the handler raised, PeerLost if its process died, TimeoutError."""
        call_id, pending = self._begin(method, body, stream=False)
        cancel = True
        try:
            async with asyncio.timeout(timeout):
                raw = await pending.reply
            cancel = False
        except RockrollError:
            cancel = False
            raise
        finally:
            self._end(call_id, cancel=cancel)
        return msgspec.msgpack.decode(raw, type=type)

    @overload
    def stream(self, method: str, body: Any = None) -> AsyncGenerator[Any, None]: ...
    @overload
    def stream(self, method: str, body: Any = None, *, type: type[T]) -> AsyncGenerator[T, None]: ...
    async def stream(self, method: str, body: Any = None, *, type: Any = Any) -> AsyncIterator[Any]:
        """Every item of a generator handler. Leaving the loop early cancels the handler."""
        call_id, pending = self._begin(method, body, stream=True)
        assert pending.chunks is not None
        cancel = True
        try:
            while (raw := await pending.chunks.get()) is not None:
                yield msgspec.msgpack.decode(raw, type=type)
            cancel = False
            error = pending.reply.exception()
            if error is not None and error is not _END_OF_STREAM:
                raise error
        finally:
            self._end(call_id, cancel=cancel)

    async def close(self) -> None:
        """Ends the link; calls under way raise PeerLost."""
        self.on_lost = None
        self.fail(PeerLost(f"the connection to {self.address} was closed by this side"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._stream is not None:
            self._stream.close()
        self._close_zmq()

    def _close_zmq(self) -> None:
        if self._zmq is not None and self._monitor is not None:
            self._zmq.disable_monitor()
            self._monitor.close(0)
            self._zmq.close(0)


_END_OF_STREAM = RockrollError("the stream ended")


async def connect(address: str) -> Client:
    """A client of the server at `address`. PeerLost at once where nothing answers a unix address; ZeroMQ waits."""
    client = Client(address)
    await client._open()
    return client
