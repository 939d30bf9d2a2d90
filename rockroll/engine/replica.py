"""One replica of an engine: the life of its process, and what it is to hold.

In: an address, a connection, news of its death. Out: `Life`, which is what the pool knows of it; whether an error is a
replica's end or an answer of it. Leaves where requests go to placing.py, and starting another to pool.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from rockroll.engine.client import EngineClient
from rockroll.errors import EngineError, PeerLost, RockrollError


class Process(Protocol):
    async def stop(self) -> None: ...


OnDeath = Callable[[RockrollError], None]
Start = Callable[[str, int, OnDeath], Awaitable[tuple[str, Process]]]
"""Starts a replica: its name, how often it was started before, whom to tell of its death. Gives address and process."""
Connect = Callable[[str], Awaitable[EngineClient]]


class Life:
    """A replica from the start of its process to its death."""

    def __init__(self, number: int, name: str, client: EngineClient, died: asyncio.Future[RockrollError]) -> None:
        self.number, self.name, self.client, self.died = number, name, client, died

    def end(self, error: RockrollError) -> None:
        if not self.died.done():
            self.died.set_result(error)


def is_death(error: RockrollError) -> bool:
    """Whether the error is a replica's end, not an answer of it."""
    return isinstance(error, PeerLost) or error.fields.get("code") == "engine_died"


def cause(working: asyncio.Future[None], name: str) -> RockrollError:
    """Why the task that watched a replica has ended."""
    error = working.exception()
    if isinstance(error, RockrollError):
        return error
    if isinstance(error, TimeoutError):
        return EngineError(
            f"{name} is silent: it has neither started, nor taken weights, nor given a sign of life in time"
        )
    return EngineError(f"{name} cannot be watched: {type(error).__name__}: {error}")
