"""Calls under way, counted.

In: the begin and the end of each. Out: how many there are, when the last one ended, and the moment at which there is
none. Leaves what is concluded from it to the callers.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType


class Calls:
    """`with calls:` around each of them."""

    def __init__(self) -> None:
        self.under_way = 0
        self.last = time.monotonic()
        """When one ended last."""
        self._none: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        self.under_way += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.under_way -= 1
        self.last = time.monotonic()
        if self._none is not None and not self.under_way:
            self._none.set_result(None)
            self._none = None

    async def none(self) -> None:
        """Returns once there is none."""
        while self.under_way:
            if self._none is None:
                self._none = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._none)
