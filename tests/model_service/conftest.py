"""A gateway, a relay and sockets that stand for those inside sandboxes: real ZeroMQ, real HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop

from rockroll.model_service.budget import Budget
from rockroll.model_service.gateway import Gateway
from rockroll.model_service.relay import OnDelta, Relay
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The node's own event loop."""
    return {"uvloop": uvloop.new_event_loop}


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    return sock


async def echo(request: ChatRequest, on_delta: OnDelta | None = None) -> ChatReply:
    said = request.messages[-1].content
    return ChatReply(text=f"{request.token}: {said}", finish_reason="stop", prompt_tokens=3, completion_tokens=4)


@dataclass
class Held:
    """A handler that answers when the test says so, and notes what became of every call."""

    requests: list[ChatRequest] = field(default_factory=list)
    cancelled: list[ChatRequest] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatReply:
        await self._note(self.requests, request)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            await self._note(self.cancelled, request)
            raise
        return await echo(request)

    async def _note(self, where: list[ChatRequest], request: ChatRequest) -> None:
        async with self.changed:
            where.append(request)
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(condition)


class Speaking:
    """A handler that says what the test tells it to, when it tells it to; every call is told the same."""

    def __init__(self) -> None:
        self.requests: list[ChatRequest] = []
        self.cancelled = 0
        self._heard: list[Delta | ChatReply | Exception] = []
        self._news = asyncio.Condition()

    async def say(self, *what: Delta | ChatReply | Exception) -> None:
        async with self._news:
            self._heard += what
            self._news.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5), self._news:
            await self._news.wait_for(condition)

    async def __call__(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatReply:
        async with self._news:
            self.requests.append(request)
            self._news.notify_all()
        at = 0
        try:
            while True:
                async with self._news:
                    await self._news.wait_for(lambda: len(self._heard) > at)  # noqa: B023
                what = self._heard[at]
                at += 1
                if isinstance(what, Exception):
                    raise what
                if isinstance(what, ChatReply):
                    return what
                if on_delta is not None:
                    on_delta(what)
        except asyncio.CancelledError:
            self.cancelled += 1
            async with self._news:
                self._news.notify_all()
            raise


@dataclass
class Answer:
    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and isinstance(error["type"], str)
        return error


class Place:
    """One gateway and its sandboxes, as a client in each of them sees it."""

    def __init__(self, address: str, http: aiohttp.ClientSession) -> None:
        self.address, self.http = address, http
        self.gateway = Gateway()
        self.ports: dict[str, int] = {}

    async def box(self, sandbox: str = "box", *, token: str | None = "token", **budget: float) -> int:
        sock = listening()
        self.ports[sandbox] = sock.getsockname()[1]
        await self.gateway.attach(sandbox, sock)
        if token is not None:
            self.gateway.route(sandbox, self.address, token, msgspec.convert(budget, Budget))
        return self.ports[sandbox]

    def url(self, path: str = "/chat/completions", sandbox: str = "box") -> str:
        return f"http://127.0.0.1:{self.ports[sandbox]}/v1{path}"

    async def post(self, body: Any, sandbox: str = "box", **options: Any) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.url(sandbox=sandbox), data=io.BytesIO(data), **options) as response:
            return Answer(response.status, await response.text())

    async def say(self, text: str = "hello", sandbox: str = "box", **fields: Any) -> Answer:
        return await self.post({"messages": [{"role": "user", "content": text}], **fields}, sandbox)

    async def get(self, path: str, sandbox: str = "box") -> Answer:
        async with self.http.get(self.url(path, sandbox)) as response:
            return Answer(response.status, await response.text())


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        place = Place(f"ipc://{tmp_path}/relay", http)
        yield place
        await place.gateway.close()


@pytest.fixture
async def serve(place: Place) -> AsyncIterator[Callable[..., Awaitable[Relay]]]:
    relays: list[Relay] = []

    async def serve(handler: Any = echo, models: tuple[str, ...] = ("tiny",), **options: Any) -> Relay:
        relay = Relay(place.address, handler, models, **options)
        await relay.start()
        relays.append(relay)
        return relay

    yield serve
    for relay in relays:
        await relay.close()


@pytest.fixture
async def held() -> Held:
    return Held()


@pytest.fixture
async def speaking() -> Speaking:
    return Speaking()
