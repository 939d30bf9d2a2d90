"""An event loop for one command.

In: a coroutine. Out: its result; Ctrl-C or SIGTERM cancels it and waits for its own cleaning up. Leaves what is to be
cleaned up to the coroutine.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end on uvloop. Raises KeyboardInterrupt once it has been cancelled by a signal.

    A second Ctrl-C changes nothing: what is going on is the removal of sandboxes and processes, which is bounded.
    """
    import uvloop

    async def guarded() -> T:
        task = asyncio.ensure_future(work)
        interrupted = False

        def interrupt() -> None:
            nonlocal interrupted
            if not interrupted:
                interrupted = True
                task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        try:
            return await task
        except asyncio.CancelledError:
            if interrupted:
                raise KeyboardInterrupt from None
            raise

    return uvloop.run(guarded())
