"""A rockroll server as seen from Python: the small interface of rpc.Client (`call`, `stream`, parts) over HTTP.

In: a base URL, a token, methods of wire/ and their bodies. Out: replies, streams, the RockrollError that the other
side raised; PeerLost where the connection broke, HostError where nothing answers. Leaves the mapping to codec.py.

What it makes with owner "connection" hangs on a lease (leases.py): one answer that never ends, read in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, get_args, get_origin
from urllib.parse import urlsplit

import aiohttp
import msgspec
from yarl import URL

from rockroll.errors import HostError, PeerLost, RockrollError, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.http import frames
from rockroll.sandbox.http.codec import CODECS, Codec, Request
from rockroll.sandbox.http.failure import Failed, error_of
from rockroll.sandbox.http.routes import LOCAL_ONLY, PREFIX, Held

CONNECT_S = 20.0
"""Seconds until a connection stands, at most."""
SILENCE_S = 60.0
"""A lease's answer that brings nothing for so long is dead: the server sends an empty line every 20 s."""
BUFFER = 1 << 20


class HttpNode:
    """Made by `connect_server`; belongs to one event loop."""

    def __init__(self, base_url: str, token: str | None) -> None:
        self.base_url = base_url.rstrip("/")
        if urlsplit(self.base_url).scheme not in ("http", "https") or not urlsplit(self.base_url).hostname:
            raise UsageError(f"base_url: http://HOST:PORT, as `rockroll serve` prints it; got {base_url!r}")
        self.closed: RockrollError | None = None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            auto_decompress=False,
            read_bufsize=BUFFER,
        )
        self._lease: asyncio.Future[str] | None = None
        self._holding: asyncio.Task[None] | None = None
        self._until_the_loop_ends: AsyncGenerator[None, None] | None = None

    async def call(
        self,
        method: str,
        body: Any = None,
        *,
        type: Any = Any,
        parts: AsyncIterator[Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """As rpc.Client.call."""
        async with asyncio.timeout(timeout):
            if method == "sandbox.claim":  # the server holds what its leases own, over the death of a node too
                method = "sandbox.get"
            codec = _codec(method, body)
            lease = await self._held() if codec.route.leased and body.owner == "connection" else None
            request = codec.encode(body, lease=lease)
            shape = codec.route.shape
            if shape == "read":
                return await self._read(request)
            if shape == "write":
                await self._send(request, body.data)
                return None
            try:
                reply = await (self._send(request, request.json) if parts is None else self._put(request, parts))
                return msgspec.json.decode(reply, type=type) if reply else None
            except msgspec.DecodeError as error:
                raise HostError(f"{self.base_url} is no rockroll server, or one of another version: {error}") from None
            except RockrollError as error:
                if method == "file.stat" and error.fields.get("missing"):
                    return None
                raise

    async def _send(self, request: Request, data: bytes | None) -> bytes:
        async with self._asked(request, data) as response:
            return await response.read()

    async def _read(self, request: Request) -> wire.FileChunk:
        async with self._asked(request) as response:
            data = await response.read()
            size, mode = response.headers["Rockroll-File-Size"], response.headers["Rockroll-File-Mode"]
            return wire.FileChunk(data=data, size=int(size), mode=int(mode, 8))

    async def _put(self, request: Request, parts: AsyncIterator[Any]) -> bytes:
        headers = {"Content-Type": frames.PARTS}
        async with _sending(parts) as sent, self._asked(request, sent, headers) as response:
            return await response.read()

    async def stream(
        self, method: str, body: Any = None, *, type: Any = Any, parts: AsyncIterator[Any] | None = None
    ) -> AsyncGenerator[Any, None]:
        """As rpc.Client.stream."""
        codec = _codec(method, body)
        request = codec.encode(body)
        if codec.route.shape in ("get", "duplex"):
            headers = {"Accept": frames.PARTS, "Content-Type": frames.PARTS}
            async with _sending(parts) as sent, self._asked(request, sent, headers) as response:
                async for part in frames.unframed(response.content.iter_any()):
                    item = msgspec.msgpack.decode(part, type=type | Failed)
                    if isinstance(item, Failed):
                        raise error_of(item.error)
                    yield item
            return
        several = get_origin(type) is list
        each = get_args(type)[0] if several else type
        async with self._asked(request, headers={"Accept": "application/x-ndjson"}) as response:
            if several:
                yield []  # what a watch waits for: from now on nothing is missed
            async for lines in _lines(response.content):
                items: list[Any] = []
                for line in lines:
                    if line.startswith(b'{"error":'):
                        if items:
                            yield items
                        raise error_of(msgspec.json.decode(line, type=Failed).error)
                    item = msgspec.json.decode(line, type=each)
                    if several:
                        items.append(item)
                    else:
                        yield item
                if items:
                    yield items

    @contextlib.asynccontextmanager
    async def _asked(
        self, request: Request, data: Any = None, headers: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, once its headers are here and say that it went well; left early, the connection is closed."""
        if self.closed is not None:
            raise self.closed
        kind = {"Content-Type": "application/json"} if request.json is not None else {}
        url = URL(f"{self.base_url}{request.url}", encoded=True)
        try:
            response = await self._session.request(
                request.verb, url, data=data, headers={**kind, **(headers or {})}, allow_redirects=False
            )
            try:
                if response.status >= 300:
                    raise _refusal(response.status, await response.read(), self.base_url)
                yield response
            finally:
                # Nothing to one that was read to its end; and it waits for no body that is still being sent.
                response.close()
        except aiohttp.ClientConnectorError as error:
            raise HostError(
                f"nothing answers at {self.base_url} ({error.os_error.strerror or error}); start a server with"
                " `rockroll serve`, or correct base_url or ROCKROLL_BASE_URL"
            ) from error
        except aiohttp.ClientError as error:
            raise self.closed or PeerLost(f"the connection to {self.base_url} broke: {error}") from error
        except TimeoutError as error:
            raise PeerLost(f"the connection to {self.base_url} broke: {error}") from error

    # -- the lease

    async def _held(self) -> str:
        """The id of this client's lease, taken when it is first needed."""
        if self._lease is None:
            self._lease = asyncio.get_running_loop().create_future()
            self._holding = asyncio.ensure_future(self._hold(self._lease))
        return await asyncio.shield(self._lease)

    async def _hold(self, lease: asyncio.Future[str]) -> None:
        try:
            async with self._asked(Request("POST", f"{PREFIX}/leases", None)) as response:
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        line = await response.content.readline()
                    if not line:
                        raise PeerLost(f"{self.base_url} ended the lease that this process's sandboxes hang on")
                    if not lease.done():
                        lease.set_result(msgspec.json.decode(line, type=Held).lease)
        except RockrollError as error:
            if lease.done():
                self.closed = self.closed or error
            else:
                self._lease = None
                lease.set_exception(error)
        finally:
            lease.cancel()

    async def close(self) -> None:
        """Ends every call, and the lease with the sandboxes that hang on it."""
        self.closed = self.closed or PeerLost(f"the connection to {self.base_url} was closed by this side")
        if self._holding is not None:
            self._holding.cancel()
            await asyncio.wait((self._holding,))
        await self._session.close()

    async def _close_with_the_loop(self) -> AsyncGenerator[None, None]:
        """asyncio closes the generators that have begun before a loop ends: a script that closes nothing still ends
        without a word of open connections."""
        try:
            yield
        finally:
            await self.close()


async def connect_server(base_url: str, token: str | None) -> HttpNode:
    """A client of the server at that URL. Nothing is sent before the first call."""
    node = HttpNode(base_url, token)
    node._until_the_loop_ends = node._close_with_the_loop()
    await anext(node._until_the_loop_ends)
    return node


@contextlib.asynccontextmanager
async def _sending(parts: AsyncIterator[Any] | None) -> AsyncIterator[AsyncIterator[bytes] | None]:
    """The parts as a request's body. They are asked for by a task that ends with the block: aiohttp's own may go on for
    a while, and the caller closes them. What they raise is raised at the end, in place of what came of it."""
    if parts is None:
        yield None
        return
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue(1)
    failed: list[Exception] = []

    async def ask() -> None:
        try:
            async for part in parts:
                await waiting.put(frames.framed(part))
        except Exception as error:  # noqa: BLE001 - raised below
            failed.append(error)
        await waiting.put(None)

    async def sent() -> AsyncGenerator[bytes, None]:
        yield frames.NOTHING  # aiohttp sends a request's headers with the first of its body
        while (data := await waiting.get()) is not None:
            yield data
        if failed:
            raise failed[0]  # the body is not ended as if it were whole

    asking = asyncio.ensure_future(ask())
    try:
        yield sent()
    except RockrollError:
        if failed:
            raise failed[0] from None
        raise
    finally:
        asking.cancel()
        await asyncio.wait((asking,))


def _codec(method: str, body: Any) -> Codec:
    codecs = CODECS.get(method)
    if codecs is None:
        why = LOCAL_ONLY.get(method, "see docs/http-api.md for those there are")
        raise UsageError(f"{method} does not go over HTTP: {why}")
    return next(codec for codec in codecs if codec.fits(body))


def _refusal(status: int, said: bytes, base_url: str) -> RockrollError:
    try:
        return error_of(msgspec.json.decode(said, type=Failed).error)
    except msgspec.DecodeError:
        return HostError(f"{base_url} is no rockroll server: it answered {status} with {said[:200]!r}")


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[list[bytes], None]:
    """Whole lines, as many at a time as have come; empty ones left out."""
    rest = b""
    async for data in content.iter_any():
        *whole, rest = (rest + data).split(b"\n")
        if lines := [line for line in whole if line]:
            yield lines
