"""What a sandbox has asked before, so that a request that goes on from it is parsed from where it goes on.

In: bodies of requests. Out: their calls, equal to what the dialect makes of each body alone; the messages that were
there before are the same objects. Pure. Leaves what a body means to the dialects.

Clients send the whole conversation with every call. A body that begins with the bytes of an earlier one, up to the last
of its messages, is at that byte where that one was: inside the same array, after the same messages. So the dialect is
given a shorter body, without them:

    earlier   {"model": "m", "messages": [A, B], "stream": true}
    now       {"model": "m", "messages": [A, B, C, D], "stream": true}
    parsed    {"model": "m", "messages": [C, D], "stream": true}

Whatever is not plainly so (an edit, an array that is there twice, a refusal) is parsed whole.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects import Call, Dialect
from rockroll.model_service.dialects.checks import MAX_MESSAGES
from rockroll.model_service.wire import Message

MOST, MOST_BYTES = 8, 2 * 2**20
"""Conversations that are remembered of one sandbox, the latest, and bytes of all of them; a longer one is not."""
_SPACE = b" \t\r\n"
_COMMA = re.compile(rb"[ \t\r\n]*,")


class _Messages(msgspec.Struct):
    messages: msgspec.Raw


class _Input(msgspec.Struct):
    input: msgspec.Raw


_ARRAYS = {"messages": msgspec.json.Decoder(_Messages).decode, "input": msgspec.json.Decoder(_Input).decode}
_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Heard(NamedTuple):
    """One request: its bytes up to the end of the last message."""

    dialect: Dialect
    prefix: bytes
    begin: int
    """Where the messages begin in it, behind the bracket."""
    elements: int
    """How many there are."""
    messages: list[Message]
    """What they mean, without those that stand elsewhere in the body."""


class History:
    """The latest conversations of one sandbox under one route."""

    def __init__(self) -> None:
        self._heard: list[_Heard] = []

    def clear(self) -> None:
        self._heard.clear()

    def parse(self, dialect: Dialect, body: bytes) -> Call:
        """As `dialect.parse`, in result and errors."""
        if not dialect.array or len(body) > MOST_BYTES:
            return dialect.parse(body)
        before = self._before(dialect, body)
        if before is not None and (call := self._continued(before, body)) is not None:
            return call
        call = dialect.parse(body)
        if (array := _array(dialect, body)) is not None:
            begin, end, count = array
            self._keep(dialect, body[:end], begin, count, call)
        return call

    def _before(self, dialect: Dialect, body: bytes) -> _Heard | None:
        fit = [
            each
            for each in self._heard
            if each.dialect is dialect and body.startswith(each.prefix) and _COMMA.match(body, len(each.prefix))
        ]
        return max(fit, key=lambda each: len(each.prefix), default=None)

    def _continued(self, before: _Heard, body: bytes) -> Call | None:
        dialect, begin, old = before.dialect, before.begin, before.messages
        rest = body[len(before.prefix) :].lstrip(_SPACE)
        short = body[:begin] + rest[1:]
        try:
            new = dialect.parse(short)
        except ModelServiceError:
            return None  # parsed whole, it says which message is wrong by its place
        array = _array(dialect, short)
        if array is None or array[0] != begin or before.elements + array[2] > MAX_MESSAGES:
            return None
        messages = [*new.messages[: new.elsewhere], *old, *new.messages[new.elsewhere :]]
        call = msgspec.structs.replace(new, messages=messages)
        self._heard.remove(before)
        end = array[1] + len(body) - len(short)
        self._keep(dialect, body[:end], begin, before.elements + array[2], call)
        return call

    def _keep(self, dialect: Dialect, prefix: bytes, begin: int, count: int, call: Call) -> None:
        messages = call.messages[call.elsewhere :]
        if not messages or messages[-1].role == "assistant":
            return  # what comes next may belong to the same answer
        self._heard = [each for each in self._heard if each.prefix != prefix][1 - MOST :]
        while self._heard and sum(len(each.prefix) for each in self._heard) + len(prefix) > MOST_BYTES:
            del self._heard[0]
        self._heard.append(_Heard(dialect, prefix, begin, count, messages))


def _array(dialect: Dialect, body: bytes) -> tuple[int, int, int] | None:
    """Where the messages' array begins, behind its bracket, where its last element ends, and how many it has; None
    where that is not plain."""
    try:
        raw = bytes(getattr(_ARRAYS[dialect.array](body), dialect.array))
        count = len(_elements(raw))
    except (msgspec.MsgspecError, RecursionError):
        return None
    at = body.find(raw)
    if not count or body.rfind(raw) != at:
        return None
    return at + 1, at + len(raw[:-1].rstrip(_SPACE)), count
