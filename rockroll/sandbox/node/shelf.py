"""One warm pool: which boxes stand ready, and how many should be made now.

In: what happened (made, failed, taken, died, time over), with the time. Out: what to do. Pure: no task, no clock, no
box, only their ids. Leaves doing it to warm.py.

             wanted() ──► making ── made ──► ready ── take ──► somebody's
                 ▲           └─ failed: pause, doubled each time ─┐  └─ gone, give_up: replaced
                 └──────────────── the pause is over, or room ◄───┘
    asleep: nobody took a box for `idle_s`: nothing is wanted until somebody asks for one
"""

from __future__ import annotations

from collections import deque

from rockroll.sandbox.node.node_config import PoolSpec

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""After a failed start the next one waits this long, twice as long each time: what made it fail (no image, no memory)
tells nobody when it is over."""
REFILL_AFTER_S = 0.1
"""While others stand ready, a box that was taken is replaced a moment later: its first command must not share the cores
with the making of the next."""
GIVEN_UP_PAUSE_S = 30.0
"""A box that made room for somebody is not made again sooner, unless another box goes."""


class Shelf:
    """One pool's state. Times are of one clock, in seconds."""

    def __init__(self, spec: PoolSpec, now: float) -> None:
        self.spec = spec
        self.ready: deque[str] = deque()
        """Ids, the oldest first: it has had the longest time to settle."""
        self.making = 0
        self.taken = self.missed = 0
        """How often somebody got a box from here, or found none."""
        self.fault: str | None = None
        """Why the last start failed; None since one succeeded."""
        self.asleep = False
        self._asked = now
        self._pause_s = 0.0
        self._paused_until = 0.0

    def wanted(self, now: float) -> int:
        """How many starts should begin now. Each of them must be told of by `begin`."""
        if self.asleep or now < self._paused_until:
            return 0
        missing = self.spec.size - len(self.ready) - self.making
        # After a failure one box tries for all.
        return max(0, min(missing, 1 - self.making) if self.fault else missing)

    def begin(self) -> None:
        self.making += 1

    def made(self, id: str) -> bool:
        """Whether it is wanted still; else the caller removes it."""
        self.making -= 1
        self.fault, self._pause_s, self._paused_until = None, 0.0, 0.0
        if self.asleep or len(self.ready) >= self.spec.size:
            return False
        self.ready.append(id)
        return True

    def failed(self, why: str, now: float) -> None:
        self.making -= 1
        self.fault = why
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2 or FIRST_PAUSE_S)
        self._paused_until = now + self._pause_s

    def ended(self) -> None:
        """A start was called off."""
        self.making -= 1

    def take(self, now: float) -> str | None:
        """A box for somebody; wakes the pool up."""
        self._asked, self.asleep = now, False
        if not self.ready:
            self.missed += 1
            return None
        self.taken += 1
        box = self.ready.popleft()
        if self.ready and now >= self._paused_until:
            self._paused_until = now + REFILL_AFTER_S
        return box

    def gone(self, id: str) -> bool:
        """It has died on the shelf; False where it was not there."""
        if id not in self.ready:
            return False
        self.ready.remove(id)
        return True

    def give_up(self, now: float) -> str | None:
        """A box to remove, since somebody needs its room; None where there is none."""
        if not self.ready:
            return None
        self._paused_until = max(self._paused_until, now + GIVEN_UP_PAUSE_S)
        return self.ready.pop()

    def room(self) -> None:
        """A box of the node has gone: what failed for want of room may be tried again."""
        self._paused_until = 0.0

    def change(self, spec: PoolSpec, now: float) -> list[str]:
        """Another size or idle time; the boxes that are too many."""
        self.spec, self._asked, self.asleep = spec, now, False
        self._pause_s = self._paused_until = 0.0
        return [self.ready.pop() for _ in range(len(self.ready) - spec.size)]

    def look(self, now: float) -> list[str]:
        """Falls asleep where its idle time is over; the boxes to remove then."""
        if self.spec.idle_s is None or self.asleep or now < self._asked + self.spec.idle_s:
            return []
        self.asleep = True
        left = list(self.ready)
        self.ready.clear()
        return left

    def next_look(self, now: float) -> float | None:
        """Seconds until something changes by time alone; None: only by events."""
        times = []
        if now < self._paused_until and not self.asleep:
            times.append(self._paused_until)
        if self.spec.idle_s is not None and not self.asleep:
            times.append(self._asked + self.spec.idle_s)
        return max(0.0, min(times) - now) if times else None
