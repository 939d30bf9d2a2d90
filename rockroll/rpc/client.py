"""The asking end of calls.

In: a method and a body. Out: the reply, a stream of chunks, or the RockrollError of the other side; PeerLost when the
other process dies. Leaves retrying to the caller: nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec
import zmq

from rockroll.errors import PeerLost, RockrollError, WireMisfit, by_name
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
from rockroll.rpc.keys import call_with
from rockroll.rpc.stream import Stream
from rockroll.rpc.zeromq import ZmqLink, ZmqPort

T = TypeVar("T")
BACK_S, COMING_S = 30.0, 900.0
"""How long a call waits for a server that is not there: one that was there before, one that may be starting."""
_log = logging.getLogger(__name__)


class _Pending:
    """One call under way: a future for a reply, an inbox of chunks for a stream, credit for a call with parts."""

    def __init__(self, chunks: Inbox | None, credit: Credit | None) -> None:
        self.reply: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self.chunks, self.credit = chunks, credit

    def fail(self, error: RockrollError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
            self.reply.exception()  # a stream may have been left: then nobody asks
        if self.chunks is not None:
            self.chunks.put(None)


class Client:
    """Calls methods at one address. Made by `connect` (dial.py); belongs to one event loop."""

    def __init__(self, address: str, key: Path | None = None) -> None:
        self.address = address
        self._key = key
        self.closed: RockrollError | None = None
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count(1)
        self._link: Link
        self._stream: Stream | None = None
        self._port: ZmqPort | None = None
        self._there = not address.startswith(("ipc:", "tcp:"))
        """Whether the server is connected; a client by ZeroMQ or through a hub may come before it."""
        self._was_there = False
        self._greeted = False
        """The server has said which version it speaks."""
        self._waits: dict[int, asyncio.TimerHandle] = {}
        """Calls that no server was there to be asked, and when they will have waited long enough."""
        self.on_lost: Callable[[], None] | None = None
        self._on_close: Callable[[], None] | None = None

    @classmethod
    def over(cls, address: str, link: Link, on_close: Callable[[], None]) -> Client:
        """A client on a link that stands already; its frames come by `hear`. address: what errors call the other side.
        on_close: told when the client is closed."""
        client = cls(address)
        client._link, client._on_close = link, on_close
        link.send(hello())
        return client

    def detach(self) -> None:
        """The link is given up: nothing is sent or told any more."""
        if self._on_close is not None:
            self._on_close()

    def hear(self, data: bytes) -> None:
        """A frame from the other side of the link."""
        self._on_frame(data)

    async def open(self) -> None:
        """Begins to connect; `connect` (dial.py) says how that may fail."""
        scheme, _, place = self.address.partition("://")
        if scheme == "unix":
            loop = asyncio.get_running_loop()
            try:
                _, stream = await loop.create_unix_connection(lambda: Stream(self._on_frame, self._lost), place)
            except OSError as error:
                raise PeerLost(f"nothing answers at {self.address}: {error.strerror or error}") from error
            self._stream = self._link = stream
            stream.send(hello())
            return
        port = self._port = ZmqPort(
            zmq.DEALER,
            lambda parts: self._on_frame(parts[-1]),
            self._zmq_there,
            self._zmq_gone,
            asks=self.address.startswith("tcp://"),
        )
        port.sock.setsockopt(zmq.RECONNECT_IVL, 50)
        port.sock.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        # Nothing waits inside ZeroMQ for a server that is away: what was asked of one that died is not asked of the
        # next, and HELLO comes first.
        port.sock.setsockopt(zmq.IMMEDIATE, 1)
        try:
            call_with(port.sock, self.address, self._key)
            port.sock.connect(self.address)
        except RockrollError:
            port.close()
            raise
        except zmq.ZMQError as error:
            port.close()
            raise RockrollError(
                f"an rpc address is unix://PATH, ipc://PATH or tcp://HOST:PORT; got {self.address!r} ({error})"
            ) from error
        self._link = ZmqLink(port)
        self._link.there = False
        port.open()

    def _zmq_there(self) -> None:
        link = self._link
        assert isinstance(link, ZmqLink)
        self._there = self._was_there = True
        self._greeted = False
        self._stop_waiting()
        link.begin(hello())

    def _stop_waiting(self) -> None:
        for wait in self._waits.values():
            wait.cancel()
        self._waits.clear()

    def _zmq_gone(self) -> None:
        link = self._link
        assert isinstance(link, ZmqLink)
        self._there = link.there = False
        link.drop()
        self._fail_pending(PeerLost(f"the process at {self.address} closed the connection"))

    def _absent(self, call_id: int) -> None:
        """A call that no server was there to be asked."""
        if pending := self._pending.get(call_id):
            why = "has not come back" if self._was_there else "never came"
            pending.fail(PeerLost(f"nothing answered at {self.address}: its process {why}; is it up?"))
            self._link.send(frame(CANCEL, call_id))  # else a server that comes later would run it for nobody

    def _on_frame(self, data: bytes | bytearray) -> None:
        try:
            self._on_answer(decode(data))
        except UNREADABLE as error:
            _log.error("rpc: %s sent a frame that cannot be read: %s", self.address, error)

    def _on_answer(self, got: Frame) -> None:
        if not self._greeted:
            version, release = (got.id, got.method) if got.kind == HELLO else (0, "")
            self._greeted = True
            if (wrong := misfit(version, release)) is not None:
                self.fail(WireMisfit(f"{self.address}: {wrong}"))
        if got.kind == HELLO:
            return
        pending = self._pending.get(got.id)
        if pending is None:
            return  # cancelled meanwhile
        if got.kind == REPLY:
            if not pending.reply.done():
                pending.reply.set_result(got.body)
        elif got.kind == CHUNK and pending.chunks is not None:
            pending.chunks.put(got.body)
        elif got.kind == END:
            pending.fail(_END_OF_STREAM)
        elif got.kind == MORE and pending.credit is not None:
            pending.credit.add(decode_count(got.body))
        elif got.kind == ERROR:
            failure = msgspec.msgpack.decode(got.body, type=Failure)
            fields = {name: value for name, value in failure.fields.items() if name not in ("self", "message")}
            pending.fail(by_name(failure.name)(failure.message, **fields))

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

    def _begin(self, method: str, body: Any, *, stream: bool = False, parts: bool = False) -> tuple[int, _Pending]:
        if self.closed is not None:
            raise self.closed
        call_id = next(self._ids)
        chunks = Inbox(lambda count: self._ask(call_id, count)) if stream else None
        self._pending[call_id] = pending = _Pending(chunks, Credit() if parts else None)
        try:
            self._link.send(frame(OPEN if parts else CALL, call_id, method, body))
        except BaseException:
            del self._pending[call_id]
            raise
        if not self._there:
            within = BACK_S if self._was_there else COMING_S
            self._waits[call_id] = asyncio.get_running_loop().call_later(within, self._absent, call_id)
        return call_id, pending

    def _ask(self, call_id: int, count: int) -> None:
        if self.closed is None:
            self._link.send(frame(MORE, call_id, body=count))

    def _end(self, call_id: int, *, cancel: bool) -> None:
        if (wait := self._waits.pop(call_id, None)) is not None:
            wait.cancel()
        if self._pending.pop(call_id, None) and cancel and self.closed is None:
            self._link.send(frame(CANCEL, call_id))

    @overload
    async def call(
        self, method: str, body: Any = None, *, parts: AsyncIterator[Any] | None = None, timeout: float | None = None
    ) -> Any: ...
    @overload
    async def call(
        self,
        method: str,
        body: Any = None,
        *,
        type: type[T],
        parts: AsyncIterator[Any] | None = None,
        timeout: float | None = None,
    ) -> T: ...
    async def call(
        self,
        method: str,
        body: Any = None,
        *,
        type: Any = Any,
        parts: AsyncIterator[Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """One reply, decoded to `type`. Raises what the handler raised, PeerLost if its process died.

        timeout: seconds, then TimeoutError; PeerLost where by then no server has been there to be asked. Without one,
        a call by ZeroMQ or through a hub waits BACK_S for a server that has gone to come back, COMING_S for one that
        was never there.
        parts: sent after the body, each when the handler is near to taking it; none is asked for once the handler has
        answered. What `parts` raises is raised here, and the handler is cancelled. The caller closes it.
        """
        call_id, pending = self._begin(method, body, parts=parts is not None)
        cancel = True
        try:
            async with asyncio.timeout(timeout):
                if parts is not None:
                    await self._send_parts(call_id, pending, parts)
                raw = await pending.reply
            cancel = False
        except RockrollError:
            cancel = not pending.reply.done()
            raise
        except TimeoutError:
            if timeout is not None and not self._there:
                raise PeerLost(f"nothing answered at {self.address} for {timeout:g} s; is its process up?") from None
            raise
        finally:
            self._end(call_id, cancel=cancel)
        return msgspec.msgpack.decode(raw, type=type)

    async def _send_parts(self, call_id: int, pending: _Pending, parts: AsyncIterator[Any]) -> None:
        """Returns when the last part is sent or the reply is here."""

        credit = pending.credit
        assert credit is not None

        async def send() -> None:
            async for part in parts:
                await credit.take()
                self._link.send(frame(PART, call_id, body=part))
                await self._link.drain()
            self._link.send(frame(LAST, call_id))

        sending = asyncio.ensure_future(send())
        try:
            await asyncio.wait((sending, pending.reply), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            await asyncio.wait((sending,))

    @overload
    def stream(
        self, method: str, body: Any = None, *, parts: AsyncIterator[Any] | None = None
    ) -> AsyncGenerator[Any, None]: ...
    @overload
    def stream(
        self, method: str, body: Any = None, *, type: type[T], parts: AsyncIterator[Any] | None = None
    ) -> AsyncGenerator[T, None]: ...
    async def stream(
        self, method: str, body: Any = None, *, type: Any = Any, parts: AsyncIterator[Any] | None = None
    ) -> AsyncIterator[Any]:
        """Every item of a generator handler. Leaving the loop early cancels the handler.

        parts: as in `call`, sent while the items come.
        """
        call_id, pending = self._begin(method, body, stream=True, parts=parts is not None)
        assert pending.chunks is not None
        sending = None if parts is None else asyncio.ensure_future(self._send_parts(call_id, pending, parts))
        if sending is not None:
            sending.add_done_callback(lambda sent: _fail_with(pending, sent))
        cancel = True
        try:
            while (raw := await pending.chunks.get()) is not None:
                yield msgspec.msgpack.decode(raw, type=type)
            if sending is not None and sending.done():
                sending.result()
            cancel = False
            error = pending.reply.exception()
            if error is not None and error is not _END_OF_STREAM:
                raise error
        finally:
            self._end(call_id, cancel=cancel)
            if sending is not None:
                sending.cancel()
                await asyncio.wait((sending,))

    async def close(self) -> None:
        """Ends the link; calls under way raise PeerLost."""
        self.on_lost = None
        self.fail(PeerLost(f"the connection to {self.address} was closed by this side"))
        self._stop_waiting()
        if self._stream is not None:
            self._stream.close()
        if self._port is not None:
            self._port.close()
        self.detach()


def _fail_with(pending: _Pending, sent: asyncio.Future[None]) -> None:
    """A stream whose parts cannot be sent ends: its reader may wait for nothing else."""
    if not sent.cancelled() and sent.exception() is not None and pending.chunks is not None:
        pending.chunks.put(None)


_END_OF_STREAM = RockrollError("the stream ended")
