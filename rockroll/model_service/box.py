"""One sandbox as the gateway sees it: its endpoint, its route, and its calls.

In: what its requests ask, and what became of their connections. Out: each call's one generation, which lives as long
as calls.py says. Leaves HTTP to gateway.py and which requests are one call to calls.py.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from rockroll.errors import ModelServiceError
from rockroll.model_service.budget import Budget, Over, Spent
from rockroll.model_service.calls import HOLD_S, Calls
from rockroll.model_service.dialects import Call
from rockroll.model_service.endpoint import MAX_BODIES, MAX_CONNECTIONS, Connection, Endpoint, too_much
from rockroll.model_service.generation import Generation
from rockroll.model_service.history import History
from rockroll.model_service.source import Source
from rockroll.model_service.wire import ChatReply

MAX_CALLS = 16
"""Completions one sandbox may have under way, and bodies it may be sending; a further one gets 429."""

STUBBORN = 8
"""After so many refusals for want of budget the rollout side is told again: this agent is not going to stop."""


@dataclass(frozen=True)
class Limits:
    """What one sandbox, or all clients of a gateway that stands alone, may take of the host."""

    calls: int = MAX_CALLS
    connections: int = MAX_CONNECTIONS
    bodies: int = MAX_BODIES


@dataclass(eq=False, frozen=True)
class Asked:
    """One call, as its first request asked for it. A retry is answered from this, and its answer is the same."""

    number: int
    id: str
    """What the client sees as the answer's id."""
    created: int
    call: Call
    size: int
    """Bytes of its body, which it keeps as messages."""
    upstream: Source
    generation: Generation


def digest(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Equal for requests that ask for the same."""
    said = f"{path}\n{headers.get('Idempotency-Key', '')}\n".encode("utf-8", "surrogateescape")
    return hashlib.sha256(said + body).digest()


def retries(headers: Mapping[str, str]) -> bool:
    """Whether this client asks again by itself after its connection broke: the vendors' SDKs do."""
    return "X-Stainless-Lang" in headers or "X-Stainless-Retry-Count" in headers


def is_retry(headers: Mapping[str, str]) -> bool:
    """Whether the client says that it has asked before."""
    count = headers.get("X-Stainless-Retry-Count", "")
    return count.isascii() and count.isdigit() and int(count[:9]) > 0


class Box:
    """One sandbox. What it has under way ends with `cancel_calls`, which every change of its route brings."""

    def __init__(self, id: str, limits: Limits) -> None:
        self.id = id
        self._limits = limits
        self.endpoint: Endpoint
        self.upstream: Source | None = None
        self.place = ""
        """Names the upstream among all that the gateway has."""
        self.token = ""
        self.tools: dict[str, str] = {}
        """URLs of the MCP servers that it may ask, by name."""
        self.spent = Spent(Budget(), 0.0)
        self._refused, self.over = 0, None
        """Calls refused for want of budget under this route, and why the first was."""
        self.counting: set[asyncio.Task[Any]] = set()
        """Calls of which only the prompt's tokens are wanted."""
        self.history = History()
        self._calls = Calls()
        self._asked: dict[int, Asked] = {}
        self._reading = self._running = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While the request's body comes in. ModelServiceError (429) where too many are."""
        if self._reading >= self._limits.calls:
            raise _too_many(self._reading, self._limits.calls)
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    def again(self, key: bytes, headers: Mapping[str, str]) -> Asked | None:
        """The call that this request is a retry of."""
        number = self._calls.arrive(key, retry=is_retry(headers))
        return None if number is None else self._asked[number]

    def route(self, upstream: Source | None, token: str, budget: Budget) -> None:
        """From now on calls go there. What was asked before ends, and what it used up is forgotten."""
        self.endpoint.next_turn()
        self.upstream, self.token = upstream, token
        self.history.clear()
        self.spent = Spent(budget, asyncio.get_running_loop().time())
        self._refused, self.over = 0, None
        self.cancel_calls()

    def room(self, n: int, body: int) -> None:
        """ModelServiceError where `n` more completions, asked for by so many bytes, are over a bound."""
        bound = min(self._limits.calls, self.spent.budget.concurrent or self._limits.calls)
        if self._running + n > bound:
            raise _too_many(self._running, bound)
        if sum(each.size for each in self._asked.values()) + body > self._limits.bodies:
            raise too_much(self._limits.bodies)  # those that wait for their client count, whose connections do not
        try:
            self.spent.check(n, body, asyncio.get_running_loop().time())
        except ModelServiceError as error:
            self._refused += 1
            self.over = self.over or error.message
            if self.upstream is not None and self._refused in (1, STUBBORN):
                limit = error.fields["limit"]
                self.upstream.over(Over(sandbox=self.id, token=self.token, limit=limit, message=error.message))
            raise

    @contextmanager
    def forwarding(self, body: int | None) -> Iterator[Callable[[int], None]]:
        """While a request of so many bytes is forwarded as it is, and one call of the budget; None: it is none, and
        costs nothing. Yields what is to be told the answer's status. ModelServiceError where it is over a bound."""
        if body is None:
            yield lambda _: None
            return
        self.room(1, body)
        spent, status = self.spent, 0

        def told(said: int) -> None:
            nonlocal status
            status = said

        spent.begin(1, body)
        self._running += 1
        try:
            yield told
        finally:
            self._running -= 1
            if status != 200:
                spent.failed(1)

    def begin(self, key: bytes, body: int, id: str, created: int, call: Call, upstream: Source) -> Asked:
        """Asks the model. ModelServiceError where that cannot be."""
        self.room(call.n, body)
        requests = call.requests(id, self.id, self.token)
        if (most := self.spent.most_tokens(call.max_tokens)) != call.max_tokens:
            requests = [msgspec.structs.replace(request, max_tokens=most) for request in requests]
        generation = Generation(upstream, requests, stream=call.stream)
        self.spent.begin(call.n, body)
        number = self._calls.begin(key)
        asked = self._asked[number] = Asked(number, id, created, call, body, upstream, generation)
        self._running += call.n
        generation.over.add_done_callback(partial(self._over, asked, self.spent))
        return asked

    @contextmanager
    def hearing(self, asked: Asked, request: web.BaseRequest) -> Iterator[None]:
        """While the answer goes out on the request's connection, to its last byte."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        settled = partial(self._settled, asked.number, retries(request.headers))
        connection.calling = True
        try:
            yield
        except (asyncio.CancelledError, ConnectionError):
            settled(False)
            raise
        except BaseException:
            self._calls.failed(asked.number)
            self._sweep()
            raise
        else:
            connection.sent(settled)
        finally:
            connection.calling = False

    def cancel_calls(self) -> None:
        """Ends all that is under way or waits for its client."""
        for each in list(self.counting):
            each.cancel()
        for number in list(self._asked):
            self._calls.failed(number)
        self._sweep()

    def _over(self, asked: Asked, spent: Spent, over: asyncio.Future[list[ChatReply]]) -> None:
        self._running -= asked.call.n
        if over.exception() is None:
            self._calls.answered(asked.number)
            replies = over.result()
            spent.answered(
                max(reply.prompt_tokens for reply in replies), sum(reply.completion_tokens for reply in replies)
            )
        else:
            spent.failed(asked.call.n)
            self._calls.failed(asked.number)
            self._sweep()

    def _settled(self, number: int, retries: bool, delivered: bool) -> None:
        """One connection has delivered the answer, or has not and cannot any more."""
        if delivered:
            self._calls.delivered(number)
        else:
            loop = asyncio.get_running_loop()
            if self._calls.broke(number, loop.time(), retries=retries) == "held":
                loop.call_later(HOLD_S, self._expire, number)
        self._sweep()

    def _expire(self, number: int) -> None:
        # the loop's timers may be early by their resolution
        if self._calls.expire(number, asyncio.get_running_loop().time() + 0.01):
            self._sweep()

    def _sweep(self) -> None:
        """What is not known any more ends."""
        for number in [each for each in self._asked if not self._calls.knows(each)]:
            self._asked.pop(number).generation.cancel()


def _too_many(running: int, bound: int) -> ModelServiceError:
    return ModelServiceError(
        f"a sandbox may have {bound} calls under way, and this one has {running}; wait for one to end",
        status=429,
        type="requests",
        code="rate_limit_exceeded",
    )
