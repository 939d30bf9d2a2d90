"""Tasks of asyncio that belong to a block of code.

In: coroutines. Out: what they return, as they end. Leaves what they do to whoever starts them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, Self


class Owned:
    """Tasks that end with this block: whatever runs at its end is cancelled and awaited. The first failure is raised
    by `next`; failures after it are those of tasks that were being cancelled, and nobody's."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(work))

    async def next(self) -> list[Any]:
        """What the tasks that ended now returned; at least one. Raises the failure of one that failed."""
        done, self._tasks = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        failures = [error for task in done if not task.cancelled() and (error := task.exception())]
        if failures:
            raise failures[0]
        return [task.result() for task in done]

    async def cancel(self) -> Iterable[Any]:
        """Cancel all and await them; what those returned that had ended meanwhile. Cancelled itself, it awaits them all
        the same: they are told once, and what they clear up goes on to its end."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        interrupted: asyncio.CancelledError | None = None
        while running := [task for task in tasks if not task.done()]:
            try:
                await asyncio.wait(running)
            except asyncio.CancelledError as error:
                interrupted = error
        ended = [task for task in tasks if not task.cancelled() and task.exception() is None]
        if interrupted is not None:
            raise interrupted
        return [task.result() for task in ended]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cancel()
