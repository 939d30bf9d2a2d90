"""A server that speaks OpenAI's dialects, as a source of a gateway's answers.

In: its base URL and key. Out: requests at the paths it speaks, forwarded byte for byte; those in other dialects asked
as chat completions and answered in the dialect they came in. Leaves the translation to dialects/, and recordings,
which stand in the server's place, to recording.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from rockroll.errors import ModelServiceError, UsageError
from rockroll.model_service.budget import Over
from rockroll.model_service.dialects import openai_chat_asked as chat
from rockroll.model_service.source import Exchange, Exchanging, Say, Server
from rockroll.model_service.wire import ChatReply, ChatRequest

T = TypeVar("T")

DIALECTS = {
    "chat": ("/v1/chat/completions", "/v1/models"),
    "completions": ("/v1/completions",),
    "responses": ("/v1/responses",),
    "messages": ("/v1/messages", "/v1/messages/count_tokens"),
}
"""What a server may speak, and where."""
COMPATIBLE = ("chat", "completions")
"""What every server speaks that calls itself OpenAI-compatible."""
CONNECT_S, SILENT_S = 10.0, 600.0
"""How long a server may take to be reached, and how long it may say nothing while it answers."""
LONGEST_ANSWER = 64 * 2**20

_OURS = {"host", "content-length", "authorization", "x-api-key", "api-key", "cookie", "accept-encoding", "expect"}
_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"}
_HOP |= {"transfer-encoding", "upgrade"}
_NOT_PASSED_BACK = _HOP | {"set-cookie", "server", "date"}


class RemoteServer:
    """A server at `url`, such as https://api.openai.com/v1 (what OPENAI_BASE_URL would say).

    key: sent in place of whatever the client sent; empty: none is sent. The client's never leaves this host.
    """

    def __init__(self, url: str, key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"an upstream is http(s)://HOST[:PORT]/v1, as OPENAI_BASE_URL would say; got {url!r}")
        if parts.username or parts.password:
            raise UsageError("an upstream's URL holds no password; give the key in an environment variable")
        self.address = url.rstrip("/")
        self._base = self.address.removesuffix("/v1")
        self._key = key
        self._http: aiohttp.ClientSession | None = None

    @contextlib.asynccontextmanager
    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> AsyncIterator[Exchange]:
        if self._http is None:
            patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=patience, auto_decompress=False
            )
        url = URL(self._base + path, encoded=True)
        sent = self._headers(headers)
        try:
            # no body, no Content-Type: aiohttp would make one up
            async with self._http.request(
                method,
                url,
                data=body or None,
                headers=sent,
                allow_redirects=False,
                skip_auto_headers=("Content-Type", "User-Agent"),
            ) as response:
                kept = {name: value for name, value in response.headers.items() if name.lower() not in _NOT_PASSED_BACK}
                yield Exchange(response.status, kept, self._pieces(response))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.lost(error) from None

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for piece in response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.lost(error) from None

    def _headers(self, headers: Mapping[str, str]) -> CIMultiDict[str]:
        dropped = _OURS | _HOP
        sent = CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)
        sent["Accept-Encoding"] = "identity"
        if self._key:
            sent["Authorization"] = f"Bearer {self._key}"
            if "anthropic-version" in sent:
                sent["x-api-key"] = self._key
        return sent

    def lost(self, error: Exception | None = None) -> ModelServiceError:
        why = f" ({type(error).__name__}: {error})" if error is not None else ""
        return ModelServiceError(
            f"the server at {self.address} cannot be reached, or broke off{why}; try again later",
            status=502,
            type="server_error",
            code="upstream_lost",
        )

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()


class Service:
    """Answers from `server`: byte for byte in the dialects that it `speaks` (names of DIALECTS), else as chats."""

    def __init__(self, server: Server, speaks: Collection[str] = COMPATIBLE) -> None:
        if unknown := sorted(set(speaks) - set(DIALECTS)):
            raise UsageError(f"a server speaks {', '.join(DIALECTS)}; got {', '.join(unknown)}")
        if "chat" not in speaks:
            raise UsageError("a server speaks chat at least: what it does not speak is asked as chat")
        self._server = server
        self._paths = {path for name in speaks for path in DIALECTS[name]}
        self._calls: set[asyncio.Task[Any]] = set()

    @property
    def address(self) -> str:
        return self._server.address

    def server(self, path: str) -> Server | None:
        return self._server if path in self._paths or path.startswith("/v1/models/") else None

    async def ready(self) -> None:
        """A server is asked when there is something to ask."""

    async def names(self) -> list[str]:
        """Models are forwarded, like chats: this is for whoever asks in code."""
        async with self._server.ask("GET", "/v1/models", {}, b"") as answer:
            said = await _read(answer)
        try:
            return [str(each["id"]) for each in msgspec.json.decode(said)["data"]]
        except (msgspec.DecodeError, KeyError, TypeError):
            raise ModelServiceError("the server's list of models cannot be read", status=502) from None

    def chat(self, request: ChatRequest, say: Say | None = None) -> asyncio.Task[ChatReply]:
        return self._begin(self._chat(request, say))

    def count(self, request: ChatRequest) -> asyncio.Task[int]:
        return self._begin(_uncounted())

    def over(self, over: Over) -> None:
        """Nobody is there to be told."""

    def lost(self) -> ModelServiceError:
        return ModelServiceError("the call was ended", status=503, type="server_error", code="upstream_lost")

    async def close(self) -> None:
        for call in list(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._server.close()

    def _begin(self, asked: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        call = asyncio.get_running_loop().create_task(asked)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    async def _chat(self, request: ChatRequest, say: Say | None) -> ChatReply:
        body = chat.body(request, stream=say is not None)
        hearing = chat.Hearing()
        async with _ask(self._server, body) as answer:
            if answer.status != 200:
                raise chat.failure(answer.status, await _read(answer))
            if say is None:
                hearing.whole(await _read(answer))
            else:
                async for piece in answer.pieces:
                    for delta in hearing.take(piece):
                        say(delta)
        return hearing.reply()


def _ask(server: Server, body: bytes) -> Exchanging:
    return server.ask("POST", chat.PATH, {"Content-Type": "application/json", "Accept": "*/*"}, body)


async def _read(answer: Exchange) -> bytes:
    said = bytearray()
    async for piece in answer.pieces:
        said += piece
        if len(said) > LONGEST_ANSWER:
            raise ModelServiceError(f"the server's answer has more than {LONGEST_ANSWER} bytes", status=502)
    return bytes(said)


async def _uncounted() -> int:
    raise ModelServiceError(
        "this server does not count tokens; the usage of an answer says how many its prompt had",
        status=404,
        type="not_found_error",
        code="not_counted",
    )
