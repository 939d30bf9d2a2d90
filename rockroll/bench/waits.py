"""An event loop whose time passes while everything waits, and only then: what a schedule comes to without a machine.

In: a coroutine that sleeps and is woken by others, without files, sockets or threads. Out: its result, at once; by
`loop.time()` it took as long as its sleeps do, and its own processor time took none. Leaves measuring to the caller.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Skipping(selectors.DefaultSelector):
    """Does not wait: says how long it would have."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # nothing would ever happen but by another thread
            return super().select(None)
        if not (ready := super().select(0)):
            self.skipped += max(0.0, timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.skipped


def run(work: Coroutine[Any, Any, T]) -> T:
    """To its end, in this thread, which runs no event loop."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)
