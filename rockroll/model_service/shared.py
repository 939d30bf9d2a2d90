"""Messages that both ends of a link have: a conversation that goes on is sent from where it goes on.

In: ChatRequests. Out: at the gateway's end, requests without the messages that the relay has from an earlier one; at
the relay's end, the same requests whole, the earlier messages being the same objects. Leaves the link to rpc, and
what a conversation is to history.py.

    gateway   Sender.shorten(request)  ──►  number, after, messages: the new ones  ──►  Receiver.restore   relay

A request takes the place of the one that it goes on from: of each line of a conversation the latest is remembered. A
relay remembers so much and no more, and a new one remembers nothing: it refuses a request whose past it does not have,
and is sent the whole.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import NamedTuple

import msgspec

from rockroll.errors import ModelServiceError
from rockroll.model_service.wire import ChatRequest, Message

LINES = 8
"""Lines that are remembered of one episode, the latest."""
MOST_CHARACTERS = 128 * 2**20
"""Of all that one end remembers."""
UNKNOWN = "history_unknown"
"""The code of the refusal."""


Name = tuple[str, int]
"""A link, where one end has several, and the number of a request on it."""


class _Line(NamedTuple):
    messages: list[Message]
    characters: int


_NOTHING = _Line([], 0)


class _Memory:
    """Lines by episode and number, the latest last; those used longest ago are forgotten first."""

    def __init__(self, most: int) -> None:
        self._most, self._characters = most, 0
        self._episodes: OrderedDict[str, dict[Name, _Line]] = OrderedDict()

    def of(self, episode: str) -> dict[Name, _Line]:
        return self._episodes.get(episode, {})

    def put(self, episode: str, number: Name, after: Name | None, messages: list[Message], before: _Line) -> None:
        lines = self._episodes.setdefault(episode, {})
        self._episodes.move_to_end(episode)
        new = sum(64 + len(each.content) for each in messages[len(before.messages) :])
        if after is not None:
            self._characters -= lines.pop(after, _NOTHING).characters
        lines[number] = _Line(messages, before.characters + new)
        self._characters += before.characters + new
        if len(lines) > LINES:
            self._characters -= lines.pop(next(iter(lines))).characters
        while self._characters > self._most and len(self._episodes) > 1:
            self.forget(next(iter(self._episodes)))

    def forget(self, episode: str) -> None:
        self._characters -= sum(each.characters for each in self._episodes.pop(episode, {}).values())


class Sender:
    """What a gateway has sent on one link. A link that was made anew needs another Sender."""

    _numbers = itertools.count(1)

    def __init__(self, most: int = MOST_CHARACTERS) -> None:
        self._sent = _Memory(most)

    def shorten(self, request: ChatRequest) -> ChatRequest:
        """The request as it is to be sent."""
        number, messages = ("", next(self._numbers)), request.messages
        lines = self._sent.of(request.token)
        fit = [each for each, line in lines.items() if _begins(messages, line.messages)]
        after = max(fit, key=lambda each: len(lines[each].messages), default=None)
        before = _NOTHING if after is None else lines[after]
        self._sent.put(request.token, number, after, messages, before)
        new = messages[len(before.messages) :] if before.messages else messages
        return msgspec.structs.replace(request, number=number[1], after=after and after[1], messages=new)

    def whole(self, request: ChatRequest) -> ChatRequest:
        """After a refusal: the request with nothing left out."""
        self._sent.forget(request.token)
        return self.shorten(request)


class Receiver:
    """What a relay remembers, of all its links."""

    def __init__(self, most: int = MOST_CHARACTERS) -> None:
        self._known = _Memory(most)

    def restore(self, link: str, request: ChatRequest) -> ChatRequest:
        """The request whole. ModelServiceError (code UNKNOWN) where what it goes on from is not remembered."""
        if not request.number:
            return request
        before, after = _NOTHING, None
        if request.after is not None:
            after = (link, request.after)
            found = self._known.of(request.token).get(after)
            if found is None:
                raise ModelServiceError("this relay does not have what the request goes on from", code=UNKNOWN)
            before = found
        messages = before.messages + request.messages
        self._known.put(request.token, (link, request.number), after, messages, before)
        return msgspec.structs.replace(request, messages=messages)

    def forget(self, token: str) -> None:
        """That episode has ended."""
        self._known.forget(token)


def _begins(messages: list[Message], old: list[Message]) -> bool:
    """Of the same objects this is a comparison of pointers."""
    return bool(old) and messages[: len(old)] == old
