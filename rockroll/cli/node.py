"""Between the `rockroll sandbox` commands and the node, or a server (ROCKROLL_BASE_URL).

In: work that needs the node, one sandbox, or several side by side. Out: its result, every connection closed. Leaves
what is printed of it to show.py; imports of the node's side wait until they are needed: --help needs none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from rockroll.errors import RockrollError

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox
    from rockroll.sandbox.node_client import Node

AT_ONCE = 64
"""Calls under way at a time. How many boxes start or go at once is the node's to say."""


@asynccontextmanager
async def connected() -> AsyncIterator[Node]:
    from rockroll.sandbox import where
    from rockroll.sandbox.node_client import close_node, connect_to

    try:
        yield await connect_to(where.place())
    finally:
        await close_node()


@asynccontextmanager
async def attached(id: str) -> AsyncIterator[Sandbox]:
    from rockroll.sandbox.client import Sandbox

    async with connected():
        yield await Sandbox.attach(id)


async def side_by_side(jobs: list[Callable[[], Awaitable[Any]]], *, keep_going: bool = False) -> list[RockrollError]:
    """Runs jobs, AT_ONCE at a time. The first error ends the others and is raised; or, with keep_going, all errors are
    returned at the end."""
    import asyncio

    slots = asyncio.Semaphore(AT_ONCE)
    errors: list[RockrollError] = []

    async def one(job: Callable[[], Awaitable[Any]]) -> None:
        async with slots:
            try:
                await job()
            except RockrollError as error:
                if not keep_going:
                    raise
                errors.append(error)

    tasks = [asyncio.ensure_future(one(job)) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return errors
