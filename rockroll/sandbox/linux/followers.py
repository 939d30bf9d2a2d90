"""Those who wait for more of something that grows.

In: readers that have read all there is; a word that there is more, or that it is over. Out: the readers go on. Leaves
what is read, and from where, to them.
"""

from __future__ import annotations

import asyncio


class Followers:
    """Of one file; everything on one event loop."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Until the next `wake`: the caller looks again then. Nothing may be awaited between its look and this."""
        more = asyncio.get_running_loop().create_future()
        self._waiting.add(more)
        try:
            await more
        finally:
            self._waiting.discard(more)

    def wake(self) -> None:
        for each in self._waiting:
            if not each.done():
                each.set_result(None)
