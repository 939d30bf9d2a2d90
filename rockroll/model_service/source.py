"""Where a gateway's answers come from: the one shape that the relay of a run, a server, a recording and a script share.

In: nothing. Out: Source, which gateway.py, box.py and generation.py work with; Server, to which requests can be
forwarded as they are. Leaves who asks, and what a refusal looks like, to gateway.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from rockroll.errors import ModelServiceError
from rockroll.model_service.budget import Over
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta

Say = Callable[[Delta], None]
"""Told each delta."""


@dataclass(frozen=True)
class Exchange:
    """One HTTP answer, as it comes. headers: those that the client may see."""

    status: int
    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]


Exchanging = AbstractAsyncContextManager[Exchange]


class Server(Protocol):
    """Something that answers HTTP requests: a real server, or a recording of one."""

    @property
    def address(self) -> str: ...

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Exchanging:
        """path: with its query. Leaving the block ends the request. ModelServiceError where there is no answer."""
        ...

    async def close(self) -> None: ...


class Source(Protocol):
    @property
    def address(self) -> str:
        """Names it among all that a gateway has."""
        ...

    async def ready(self) -> None:
        """Returns when `chat` may be called. ModelServiceError (503) where that is not soon."""

    def server(self, path: str) -> Server | None:
        """Who answers requests at this path byte for byte; None: they are for a dialect and `chat`."""

    async def names(self) -> list[str]:
        """Of the models served. As `ready`."""
        ...

    def chat(self, request: ChatRequest, say: Say | None = None) -> asyncio.Task[ChatReply]:
        """The call under way, its deltas told to `say`; cancelled where the source is lost. Only when ready."""
        ...

    def count(self, request: ChatRequest) -> asyncio.Task[int]:
        """How many tokens the prompt has. As `chat`."""
        ...

    def over(self, over: Over) -> None:
        """A sandbox was refused a call for want of budget."""

    def lost(self) -> ModelServiceError:
        """What a call is told whose answer the source cannot give any more."""
        ...

    async def close(self) -> None:
        """Cancels what runs and ends every connection."""
