"""The times of one episode: who holds it, for how long, and which limit it has reached.

In: who holds the episode from now on, and every sign of progress. Out: the moment at which it must be ended, and then
which limit that was and whose time it went by in. `Clock` is pure, given a clock; `Watch` is it on an event loop.
Leaves what a limit means for the score to verdict.py.

    pool ──► ours ──► env ─┬─► agent ◄──► engine ──► ours ──► env        an agent in a sandbox
                           └─► env ◄────► engine                         an Env
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, Literal, NamedTuple, TypeVar

Holder = Literal["pool", "engine", "agent", "env", "ours"]
"""pool: it waits for a sandbox. engine: for an answer, weight updates included. ours: rockroll puts files, kills."""

Limit = Literal["cap", "stall", "agent"]

T = TypeVar("T")


class Expired(NamedTuple):
    """A limit that was reached. holder: who held the episode then (stall), or for most of the time (cap)."""

    limit: Limit
    holder: Holder
    seconds: float
    """The limit."""


class Clock:
    """now: seconds, as a function. The limits, in seconds; math.inf: none.

    cap     wall-clock time of the whole episode, but for what it waited for a sandbox
    stall   since the last progress: a change of holder, a call to the model, an answer
    agent   of what the agent itself held: the wait for the engine, a weight update included, is not its own
    """

    def __init__(
        self, now: Callable[[], float], *, cap: float = math.inf, stall: float = math.inf, agent: float = math.inf
    ) -> None:
        self._now = now
        self._limits: dict[Limit, float] = {"cap": cap, "stall": stall, "agent": agent}
        self._base: Holder = "pool"
        self._asking = False
        self._since = self._progress = now()
        self._spent: dict[Holder, float] = {}
        self._worked = 0.0
        """Of that, what counts for `cap`."""

    @property
    def holder(self) -> Holder:
        return "engine" if self._asking else self._base

    def hold(self, holder: Holder) -> None:
        """From now on, but for the time in which a call is with the engine."""
        self._book()
        self._base = holder

    def asks(self, asking: bool) -> None:
        """A call began or ended: whether one is with the engine now."""
        self._book()
        self._asking = asking

    def limit(self, name: Limit, seconds: float) -> None:
        """Another limit from now on."""
        self._limits[name] = seconds

    @property
    def spent(self) -> dict[Holder, float]:
        """Seconds by holder until now."""
        found = dict(self._spent)
        found[self.holder] = found.get(self.holder, 0.0) + self._now() - self._since
        return found

    @property
    def due(self) -> float:
        """When the episode must be ended, if nothing moves until then."""
        return min(self._dues().values(), default=math.inf)

    def expired(self) -> Expired:
        """The limit that `due` stands for."""
        dues = self._dues()
        limit = min(dues, key=lambda name: dues[name])
        holder = self.holder
        if limit == "cap":
            held: list[tuple[float, Holder]] = [
                (seconds, name) for name, seconds in self.spent.items() if name != "pool"
            ]
            holder = max(held, key=lambda one: one[0])[1]
        return Expired(limit, holder, self._limits[limit])

    def _dues(self) -> dict[Limit, float]:
        if self.holder == "pool":
            return {}  # boxes come back as other episodes end, and a pool that cannot make any says so
        dues: dict[Limit, float] = {
            "cap": self._since + self._limits["cap"] - self._worked,
            "stall": self._progress + self._limits["stall"],
        }
        if self.holder == "agent":
            dues["agent"] = self._since + self._limits["agent"] - self._spent.get("agent", 0.0)
        return dues

    def _book(self) -> None:
        now, holder = self._now(), self.holder
        self._spent[holder] = self._spent.get(holder, 0.0) + now - self._since
        if holder != "pool":
            self._worked += now - self._since
        self._since = self._progress = now


class TimeUp(Exception):
    """A limit of the clock was reached; what ran was cancelled."""

    def __init__(self, expired: Expired) -> None:
        super().__init__(f"{expired.limit} limit of {expired.seconds:g} s")
        self.expired = expired


class Watch:
    """The clock of one episode on the running event loop: acts at the moment a limit is reached. Its one timer is set
    anew only where that moment has come nearer: a limit goes away at every turn, and is looked for when it was due."""

    def __init__(self, *, cap: float, stall: float, agent: float = math.inf) -> None:
        self._loop = asyncio.get_running_loop()
        self.clock = Clock(self._loop.time, cap=cap, stall=stall, agent=agent)
        self._scope: asyncio.Timeout | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._up: Expired | None = None
        """The limit that was reached, while the work is being cancelled for it."""

    def hold(self, holder: Holder) -> None:
        if self._up is None:  # what is being cancelled changes no more who held it when the time was up
            self.clock.hold(holder)
            self._moved()

    def asks(self, asking: bool) -> None:
        if self._up is None:
            self.clock.asks(asking)
            self._moved()

    def limit(self, name: Limit, seconds: float) -> None:
        self.clock.limit(name, seconds)
        self._moved()

    async def within(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns. Raises TimeUp when a limit is reached first: `work` is cancelled and awaited."""
        try:
            async with asyncio.timeout(None) as self._scope:
                self._moved()
                return await work
        except TimeoutError:
            if self._up is None:
                raise
            raise TimeUp(self._up) from None
        finally:
            self._scope = self._up = None
            self._disarm()

    def _moved(self) -> None:
        if self._scope is None or self._up is not None:
            return
        due = self.clock.due
        if self._timer is not None and self._timer.when() <= due:
            return
        self._disarm()
        if not math.isinf(due):
            self._timer = self._loop.call_at(due, self._look)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        assert self._scope is not None
        self._timer = None
        if self._loop.time() < self.clock.due:
            self._moved()
        else:
            self._up = self.clock.expired()
            self._scope.reschedule(self._loop.time())
