"""Answers that were written beforehand: a gateway without a model, for tests and demonstrations.

In: a handler, as a relay has one; or a file of answers. Out: a source of a gateway's answers. Leaves dialects to
dialects/: every one of them is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from rockroll.errors import ModelServiceError, UsageError
from rockroll.model_service.budget import Over
from rockroll.model_service.relay import Handler, OnDelta
from rockroll.model_service.source import Say
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta, ToolCall


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool call of a scripted answer."""

    name: str
    arguments: dict[str, Any] = {}


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a script: `{"text": "Hello."}` or `{"calls": [{"name": "run", "arguments": {"command": "ls"}}]}`."""

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = []


class Scripted:
    """`handler` makes every answer, as it would behind a relay; a word that it hands to on_delta streams."""

    def __init__(self, handler: Handler, models: Iterable[str] = ("scripted",), *, address: str = "script:") -> None:
        self.address = address
        self._handler, self._models = handler, list(models)
        self._calls: set[asyncio.Task[ChatReply]] = set()

    def server(self, path: str) -> None:
        """Every request is for its dialect."""

    async def ready(self) -> None:
        """At once."""

    async def names(self) -> list[str]:
        return self._models

    def chat(self, request: ChatRequest, say: Say | None = None) -> asyncio.Task[ChatReply]:
        call = asyncio.ensure_future(self._handler(request, say))
        assert isinstance(call, asyncio.Task)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    def count(self, request: ChatRequest) -> asyncio.Task[int]:
        return asyncio.get_running_loop().create_task(_counted(request))

    def over(self, over: Over) -> None:
        """Nobody is there to be told."""

    def lost(self) -> ModelServiceError:
        return ModelServiceError("the call was ended", status=503, type="server_error", code="upstream_lost")

    async def close(self) -> None:
        for call in list(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)


def from_file(path: Path) -> Scripted:
    """Answers every call with the next line of the file (see Line); after the last one, calls are refused.

    Tokens are counted as words. UsageError where the file is no script.
    """
    decode = msgspec.json.Decoder(Line).decode
    lines: list[Line] = []
    number = 0
    try:
        for line in path.read_bytes().splitlines():
            number += 1
            if line.strip():
                lines.append(decode(line))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UsageError(
            f'{path}, line {number}: an answer is {{"text": …}} or {{"calls": [{{"name": …}}]}}: {error}'
        ) from None
    if not lines:
        raise UsageError(f'{path} has no answers; write one a line, such as {{"text": "Hello."}}')
    given = iter(enumerate(lines))

    async def answer(request: ChatRequest, on_delta: OnDelta | None) -> ChatReply:
        try:
            number, line = next(given)
        except StopIteration:
            raise ModelServiceError(
                f"the script has {len(lines)} answers, and all are given",
                status=400,
                type="invalid_request_error",
                code="script_ended",
            ) from None
        if on_delta is not None:
            for word in _words(line.text):
                on_delta(Delta(text=word))
        calls = [
            ToolCall(
                id=f"call_{number}_{place}", name=each.name, arguments=msgspec.json.encode(each.arguments).decode()
            )
            for place, each in enumerate(line.calls)
        ]
        return ChatReply(
            text=line.text,
            reasoning=line.reasoning,
            tool_calls=calls,
            finish_reason="tool_calls" if calls else "stop",
            prompt_tokens=_size(request),
            completion_tokens=max(1, len(line.text.split())),
        )

    return Scripted(answer, address=f"script:{path}")


async def _counted(request: ChatRequest) -> int:
    return _size(request)


def _size(request: ChatRequest) -> int:
    return sum(len(each.content.split()) for each in request.messages) or len((request.prompt or "").split())


def _words(text: str) -> list[str]:
    """Joined, they are the text."""
    words: list[str] = []
    for word in text.split(" "):
        words.append(word if not words else f" {word}")
    return words if text else []
