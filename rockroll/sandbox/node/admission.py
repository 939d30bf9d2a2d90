"""The gate before Podman: creations and removals go in as fast as it answers, owners in turn.

In: `async with admission.turn(owner)` around the work. Out: the block runs when it may. Leaves the limit to aimd.py,
the order to turns.py, and whether a box may be at all to quotas.py and limits.py.

Nothing polls: a turn that ends lets the next one in, and one whose caller is cancelled gives its place up at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from rockroll.sandbox.node.aimd import Aimd
from rockroll.sandbox.node.measured import Measured
from rockroll.sandbox.node.turns import Rank, Turns


class Admission:
    """One a node. clock: seconds, for the latency of each turn."""

    def __init__(self, aimd: Aimd, clock: Callable[[], float] = time.monotonic) -> None:
        self._aimd, self._clock = aimd, clock
        self._turns: Turns[asyncio.Future[None]] = Turns()
        self._running = 0
        self.measured = Measured()

    @contextlib.asynccontextmanager
    async def turn(self, owner: str, rank: Rank = "create") -> AsyncIterator[None]:
        """Waits for its turn; the block's time is the latency that the limit follows. Cancelled while it waits, it has
        taken nothing."""
        asked = self._clock()
        await self._wait(owner, rank)
        self.measured.add("wait", self._clock() - asked)
        began, full, ok = self._clock(), self._full(), False
        try:
            yield
            ok = True
        finally:
            self._running -= 1
            kind = "remove" if rank == "remove" else "start"
            took = self._clock() - began
            self._aimd.done(kind, took, full=full or self._full(), ok=ok)
            self.measured.add(kind, took, ok=ok)
            self._let_in()

    @property
    def limit(self) -> int:
        """How many may be under way at once now."""
        return self._aimd.limit

    @property
    def running(self) -> int:
        """How many are under way."""
        return self._running

    def waiting(self) -> dict[str, int]:
        """Owner → how many of its calls wait for their turn."""
        return self._turns.waiting()

    async def _wait(self, owner: str, rank: Rank) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.add(owner, place, rank)
        self._let_in()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._running -= 1  # it was let in in the moment it was cancelled
            else:
                self._turns.drop(owner, place)
            self._let_in()
            raise

    def _full(self) -> bool:
        return self._running + 1 >= self._aimd.limit

    def _let_in(self) -> None:
        while self._running < self._aimd.limit:
            # Refills leave half of the places: whoever comes next finds one free.
            spare = self._running < max(1, self._aimd.limit // 2)
            if (place := self._turns.next(background=spare)) is None:
                return
            if not place.done():  # else its caller was cancelled and has not run since
                self._running += 1
                place.set_result(None)
