"""Whether a replica works, is busy, or is as good as dead.

In: its pulses (Stats) and the time. Out: why it is to be replaced, or "". Pure: the clock is the caller's. Leaves the
death of a process, which is known at once, to placement, and a broken connection to rpc.

    starting ──first pulse──► serving ◄──► loading        no pulse for SILENT_S: silent
         │                       ├── work, but no step of its model for STUCK_S: stuck
         └ none for STARTING_S   └── loading for LOADING_S: its weights do not arrive

An engine pulses from its event loop: one that compiles, or is in a long step, pulses on. One that has not begun to
pulse loads or compiles its model, and has all the time of a start, which the pool measures.
"""

from __future__ import annotations

from rockroll.engine.api import Stats

SILENT_S = 60.0
"""A pulse comes twice a second; so long without one is no busy machine any more."""
STUCK_S = 600.0
"""With requests to decode and no new weights on their way; a first step may compile for minutes."""
STARTING_S = LOADING_S = 1800.0
"""The largest model from the slowest disk; a start or a delivery that hangs would else hold the run for ever."""


class Health:
    def __init__(
        self,
        silent_s: float = SILENT_S,
        stuck_s: float = STUCK_S,
        starting_s: float = STARTING_S,
        loading_s: float = LOADING_S,
    ) -> None:
        self.silent_s, self.stuck_s, self.starting_s, self.loading_s = silent_s, stuck_s, starting_s, loading_s
        self._heard: float | None = None
        self._progress = -1
        self._since = 0.0
        """When it last got on, or had nothing to do."""
        self._loading: float | None = None
        """Since when it takes the weights that it takes now."""

    def heard(self, now: float, stats: Stats) -> str:
        """now: seconds of any clock that only goes forward."""
        self._heard = now
        if stats.progress != self._progress or stats.loading or not stats.running + stats.waiting:
            self._progress, self._since = stats.progress, now
        if not stats.loading:
            self._loading = None
        elif self._loading is None:
            self._loading = now
        return self.judge(now)

    def judge(self, now: float) -> str:
        if self._heard is None:
            return ""
        if now - self._heard >= self.silent_s:
            return f"has said nothing for {now - self._heard:.0f} s"
        if self._loading is not None and now - self._loading >= self.loading_s:
            return f"has been taking new weights for {now - self._loading:.0f} s"
        if now - self._since >= self.stuck_s:
            return f"has requests and has done no step for {now - self._since:.0f} s"
        return ""
