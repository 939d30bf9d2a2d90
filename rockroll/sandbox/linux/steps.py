"""Blocking work on an event loop, one step at a time, never left behind.

In: a function, or an iterator whose every step blocks. Out: its results. A cancelled caller waits until the step under
way has ended: whoever closes descriptors afterwards knows that no thread uses them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_END: Any = object()


async def step(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """work(*args, **kwargs) in a thread, to its end."""
    return await to_its_end(asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs)))


async def steps(items: Generator[T, None, None]) -> AsyncGenerator[T, None]:
    """Every item, each made in a thread while the one before is in use. Closes `items` at the end: open in aclosing."""
    ahead = asyncio.ensure_future(asyncio.to_thread(next, items, _END))
    try:
        while (item := await to_its_end(ahead)) is not _END:
            ahead = asyncio.ensure_future(asyncio.to_thread(next, items, _END))
            yield item
    finally:
        while not ahead.done():
            try:
                await asyncio.wait((ahead,))
            except asyncio.CancelledError:
                continue  # raised already: this is the way out
        if not ahead.cancelled():
            ahead.exception()  # asked for, so that nobody is told of an error that came after the last interest
        await step(items.close)


async def to_its_end(work: asyncio.Future[T]) -> T:
    """Its result; cancelled, it waits for the end all the same."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001 - raised below, by the work itself
            break
    if cancelled is not None:
        if not work.cancelled():
            work.exception()
        raise cancelled
    return work.result()
