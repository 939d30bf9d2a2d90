"""The HTTP socket inside one sandbox, served by a process outside of it.

In: a listening socket, and a coroutine that answers a request. Out: its answers, and a vendor's errors for what is not
HTTP or too big. Leaves the dialects to their folder and routes to gateway.py. What a sandbox can take from the host is
bounded here: connections, and the size of a body.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects import vendor_at
from rockroll.model_service.dialects.checks import bad_request
from rockroll.model_service.outlet import whole

MAX_BODY = 8 * 2**20
MAX_BODIES = 32 * 2**20
"""Bytes of all calls that one sandbox has under way: they are the host's memory, not the sandbox's."""
HEADERS_WITHIN_S = 30.0
"""A connection whose first request's headers are not whole after so long is closed; later ones have aiohttp's 75 s."""
BODY_WITHIN_S = 60.0
"""A body that is not whole after so long gets 408."""
REFUSED_BODY_S = 1.0
"""A body that was refused is read and dropped for so long, so that its client comes to read why; then it is cut off."""
MAX_CONNECTIONS = 64
"""Open at once in one sandbox; a further one waits, unaccepted, until another is closed."""
_ACCEPT_BATCH = 64
_BACKLOG = 4096
"""The longest queue of unaccepted connections that Linux allows by default (net.core.somaxconn)."""
_DESCRIPTORS_BACK_S = 1.0
"""After accept() found no free file descriptor the socket rests this long; nothing tells when one is free again."""

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_log = logging.getLogger(__name__)


def refusal(error: ModelServiceError, request: web.BaseRequest) -> web.Response:
    """`error` as the vendor whose path or headers these are would say it."""
    vendor = vendor_at(request.path, request.headers)
    headers = {"X-Should-Retry": "false"} if error.fields.get("again") is False else {}
    return whole(vendor.error(error), headers, vendor.status(error))


_TCP_CLOSE = 7
"""The state of a connection that was reset (include/net/tcp_states.h), the first byte of TCP_INFO."""


class Connection(web.RequestHandler):
    """One connection. `turn`: the endpoint's when it was accepted. `calling`: its request waits for a model.

    An answer is delivered when its last byte was handed to the kernel and the connection then carried another request,
    or was closed without a reset. On one host the kernel resets a connection whose client closed it with bytes unread,
    or before the bytes came: a client that gave up is told from one that has read all.
    """

    __slots__ = ("_on_lost", "_on_settled", "_patience", "calling", "turn")

    def __init__(self, http: _Http, turn: int, on_lost: Callable[[], None], **settings: Any) -> None:
        super().__init__(http, **settings)
        self.turn = turn
        self.calling = False
        self._on_lost = on_lost
        self._on_settled: Callable[[bool], None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._patience = asyncio.get_running_loop().call_later(HEADERS_WITHIN_S, self.force_close)

    def asked(self) -> None:
        """The headers of a request are here: what was answered before it was delivered."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self.settle()

    def sent(self, on_settled: Callable[[bool], None]) -> None:
        """The last byte of an answer was written. `on_settled` is told, once, whether it was delivered."""
        if self.transport is None:
            on_settled(False)
        else:
            self._on_settled = on_settled

    def settle(self, delivered: bool = True) -> None:
        """Another request came, or the connection ended."""
        if (tell := self._on_settled) is not None:
            self._on_settled = None
            tell(delivered)

    def connection_lost(self, exc: BaseException | None) -> None:
        delivered = exc is None and not self._was_reset()
        super().connection_lost(exc)
        if self._patience is not None:
            self._patience.cancel()
        self.settle(delivered)
        self._on_lost()

    def _was_reset(self) -> bool:
        sock = None if self.transport is None else self.transport.get_extra_info("socket")
        try:
            return sock is None or sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
        except OSError:
            return True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp's own answer would be plain text, and a line in the host's log for each bad line of a sandbox."""
        if status < 500:
            said = " ".join((message or "").split())[:200]
            error = bad_request(f"this is not HTTP that can be read ({said}); send HTTP/1.1")
        else:
            _log.error("model service: a request could not be answered", exc_info=exc)
            error = ModelServiceError("the model service failed; the node's log says why", status=500)
        response = refusal(error, request)
        response.force_close()
        return response


class _Http(web.Server):
    def accepted(self, turn: int, on_lost: Callable[[], None]) -> Connection:
        return Connection(
            self,
            turn,
            on_lost,
            loop=self._loop,
            access_log=None,
            auto_decompress=False,
            lingering_time=REFUSED_BODY_S,
        )


def too_much(bodies: int = MAX_BODIES) -> ModelServiceError:
    return ModelServiceError(
        f"the calls that this sandbox has under way have more than {bodies} bytes; wait for one to end",
        status=429,
        type="requests",
        code="rate_limit_exceeded",
    )


class Endpoint:
    """Serves one listening socket, whose connections it accepts itself: the turn a connection belongs to is fixed
    at accept(), and connections over the limit cost nothing."""

    def __init__(
        self, sock: socket.socket, answer: Answer, *, connections: int = MAX_CONNECTIONS, bodies: int = MAX_BODIES
    ) -> None:
        self._most, self._bodies = connections, bodies
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._answer = answer
        self._held: dict[int, int] = {}
        self._http = _Http(self._answered, request_factory=self._request, handler_cancellation=True)
        self._connecting: set[asyncio.Task[Any]] = set()
        self._open = 0
        self._resting: asyncio.TimerHandle | None = None
        self._closed = False
        self.turn = 0
        sock.setblocking(False)
        self._listen()

    def next_turn(self) -> None:
        """Hears nobody any more who connected before now: not those connected, nor those waiting to be accepted.

        A connection that waits for a model is answered first (its call must have been cancelled), then closed.
        """
        self.turn += 1
        if self._closed:
            return
        for _ in range(_BACKLOG):
            if (connection := self._next()) is None:
                break
            connection.close()
        for each in self._connections():
            if each.calling:
                each.close()
            else:
                each.force_close()

    def is_late(self, request: web.BaseRequest) -> bool:
        """Whether the request's connection was made in an earlier turn."""
        connection = request.protocol
        return not isinstance(connection, Connection) or connection.turn != self.turn

    async def read_body(self, request: web.BaseRequest) -> bytes:
        """The whole body. ModelServiceError where it has more than MAX_BODY bytes (413) or takes too long (408)."""
        try:
            if (request.content_length or 0) > MAX_BODY:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY)
            if request.headers.get("Expect", "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # what was sent is not yet the answer
            body = bytearray()
            async with asyncio.timeout(BODY_WITHIN_S):
                async for piece in request.content.iter_any():
                    self._hold(request, len(piece))
                    body += piece
                    if len(body) > MAX_BODY:
                        raise web.HTTPRequestEntityTooLarge(MAX_BODY)
            return bytes(body)
        except TimeoutError:
            raise ModelServiceError(
                f"the body was not whole after {BODY_WITHIN_S:g} s; send it faster",
                status=408,
                type="invalid_request_error",
                code="request_timeout",
            ) from None
        except web.HTTPRequestEntityTooLarge:
            raise ModelServiceError(
                f"the body has more than {MAX_BODY} bytes; send fewer or shorter messages",
                status=413,
                type="invalid_request_error",
                code="request_too_large",
            ) from None
        except web.RequestPayloadError as error:
            raise bad_request(f"the body cannot be read: {' '.join(str(error).split())[:200]}") from None

    async def _answered(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._answer(request)
        finally:
            self._held.pop(id(request), None)

    def _hold(self, request: web.BaseRequest, size: int) -> None:
        """Counts bytes of a body until its call is answered."""
        if sum(self._held.values()) + size > self._bodies:
            raise too_much(self._bodies)
        self._held[id(request)] = self._held.get(id(request), 0) + size

    def close(self) -> None:
        """Ends the socket and every connection at once. A second time does nothing."""
        if self._closed:
            return
        self.turn += 1
        self._closed = True
        if self._resting is not None:
            self._resting.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for each in self._connections():
            if each.transport is not None:
                each.transport.abort()

    async def wait_closed(self) -> None:
        """Returns when no task of a connection runs any more. After `close`."""
        await asyncio.gather(*self._connecting, return_exceptions=True)
        await self._http.shutdown(1.0)

    def _connections(self) -> list[Connection]:
        return [each for each in self._http.connections if isinstance(each, Connection)]

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=MAX_BODY)

    def _next(self) -> socket.socket | None:
        while True:
            try:
                return self._sock.accept()[0]
            except (BlockingIOError, InterruptedError):
                return None
            except ConnectionAbortedError:
                continue  # it left while it waited

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPT_BATCH):
            if self._open >= self._most:
                self._loop.remove_reader(self._sock)
                return  # _lost listens again
            try:
                connection = self._next()
            except OSError as error:
                _log.error("model service: no connection can be accepted: %s; trying again", error)
                self._loop.remove_reader(self._sock)
                self._resting = self._loop.call_later(_DESCRIPTORS_BACK_S, self._listen)
                return
            if connection is None:
                return
            self._open += 1
            task = self._loop.create_task(self._connect(connection, self.turn))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket, turn: int) -> None:
        connection.setblocking(False)
        try:
            made = await self._loop.connect_accepted_socket(lambda: self._http.accepted(turn, self._lost), connection)
        except OSError:
            connection.close()  # it left before it was served
            self._lost()
        else:
            if turn != self.turn:
                made[0].abort()

    def _lost(self) -> None:
        self._open -= 1
        if self._open == self._most - 1:
            self._listen()
