"""What every dialect makes of a request, and what it makes of the answer: the shape that gateway.py works with.

In: nothing; the dialects fill it. Out: Call (a request that can be honoured), Events (its answer as a stream) and
Dialect (one vendor's way to ask). Everything here and in the dialects is pure: bytes in, bytes out. Leaves sockets,
routes and who is asking to gateway.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import msgspec

from rockroll.errors import ModelServiceError
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta, Message, Tool

DEFAULT_MODEL = "rockroll"
"""Stands in the answer where the request names no model."""

encode = msgspec.json.Encoder().encode


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can be honoured, before it is known who asks. Each dialect adds what its answer needs."""

    model: str
    messages: list[Message]
    elsewhere: int = 0
    """So many of them, the first, do not stand in the body's array of messages: Anthropic's `system`, say."""
    prompt: str | None = None
    tools: list[Tool] = []
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] = []
    seed: int | None = None
    logprobs: int | None = None
    n: int = 1
    stream: bool = False

    def requests(self, id: str, sandbox: str, token: str) -> list[ChatRequest]:
        """One for each of the `n` completions."""
        return [
            ChatRequest(
                id=id,
                sandbox=sandbox,
                token=token,
                model=self.model,
                messages=self.messages,
                prompt=self.prompt,
                tools=self.tools,
                tool_choice=self.tool_choice,
                parallel_tool_calls=self.parallel_tool_calls,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                stop=self.stop,
                seed=self.seed,
                logprobs=self.logprobs,
                index=index,
            )
            for index in range(self.n)
        ]

    def answer(self, id: str, created: int, replies: list[ChatReply]) -> bytes:
        """The JSON body of the whole answer; `replies` in the order of `requests`."""
        raise NotImplementedError

    def events(self, id: str, created: int) -> Events:
        """The same answer as a stream."""
        raise NotImplementedError


class Events:
    """One answer as server-sent events: begin ─► delta | reply … (a reply for each index) ─► end. error instead of
    any of them, after begin.

    Each call returns the bytes to send. A handler that streams nothing, or stops half-way, is made up for at its reply.
    """

    PING: ClassVar[bytes] = b": keep-alive\n\n"
    """Sent when nothing was for a while, so that nobody between takes the connection for dead."""

    def __init__(self, n: int = 1) -> None:
        self._spoken = [Spoken() for _ in range(n)]

    def delta(self, index: int, delta: Delta) -> bytes:
        self._spoken[index].add(delta)
        return self._piece(index, delta)

    def reply(self, index: int, reply: ChatReply) -> bytes:
        rest = [self._piece(index, delta) for delta in self._spoken[index].rest(reply)]
        return b"".join(rest) + self._finish(index, reply)

    def begin(self) -> bytes:
        raise NotImplementedError

    def end(self) -> bytes:
        raise NotImplementedError

    def error(self, error: ModelServiceError) -> bytes:
        raise NotImplementedError

    def _piece(self, index: int, delta: Delta) -> bytes:
        raise NotImplementedError

    def _finish(self, index: int, reply: ChatReply) -> bytes:
        raise NotImplementedError


class Spoken:
    """How much of one completion has been streamed."""

    def __init__(self) -> None:
        self._text = self._reasoning = self._logprobs = 0
        self._arguments: list[int] = []

    def add(self, delta: Delta) -> None:
        self._text += len(delta.text)
        self._reasoning += len(delta.reasoning)
        self._logprobs += len(delta.logprobs)
        if delta.tool is not None:
            while len(self._arguments) <= delta.tool:
                self._arguments.append(0)
            self._arguments[delta.tool] += len(delta.arguments)

    def rest(self, reply: ChatReply) -> list[Delta]:
        """The deltas that `reply` holds and that were not said; in the order thought, text, tool calls."""
        rest: list[Delta] = []
        if reasoning := reply.reasoning[self._reasoning :]:
            rest.append(Delta(reasoning=reasoning))
        text, logprobs = reply.text[self._text :], (reply.logprobs or [])[self._logprobs :]
        if text or logprobs:
            rest.append(Delta(text=text, logprobs=logprobs))
        for i, call in enumerate(reply.tool_calls):
            if i >= len(self._arguments):
                rest.append(Delta(tool=i, tool_id=call.id, name=call.name, arguments=call.arguments))
            elif arguments := call.arguments[self._arguments[i] :]:
                rest.append(Delta(tool=i, arguments=arguments))
        for delta in rest:
            self.add(delta)
        return rest


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One vendor's way to ask for a completion."""

    id_prefix: str
    """What an answer's id begins with."""
    parse: Callable[[bytes], Call]
    """The body of a request. Raises ModelServiceError with a status of 4xx, and nothing else, where it cannot be
    honoured."""
    vendor: Vendor
    array: Literal["messages", "input", ""] = ""
    """The field whose elements are messages, each meaning what it means whatever stands before it, once an answer that
    is spread over several has ended. Empty: there is none."""
    count: Callable[[int], bytes] | None = None
    """Where nothing is completed: the answer that says how many tokens the prompt has."""


class Vendor(msgspec.Struct, frozen=True, kw_only=True):
    """What all dialects of one vendor share."""

    request_id: str
    """The header that gives the answer's id."""
    error: Callable[[ModelServiceError], bytes]
    status: Callable[[ModelServiceError], int]
    models: Callable[[list[str], int], bytes]
    """The body of `GET /v1/models` for these names, served since then (unix time)."""
    model: Callable[[str, int], bytes]
    """The body of `GET /v1/models/NAME`."""


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if event is None else b"event: " + event.encode() + b"\n"
    return head + b"data: " + encode(data) + b"\n\n"
