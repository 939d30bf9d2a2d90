"""How long what a node does has taken, counted in buckets: for Prometheus, and cheap enough to be always on.

In: seconds of each turn. Out: `Took`s by kind. Pure. Leaves who shows them to http/metrics.py.
"""

from __future__ import annotations

from bisect import bisect_left

from rockroll.sandbox.wire import Took

BOUNDS = (0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds: a fresh box takes 0.1 alone, and seconds in a storm."""


class Measured:
    """add ─► shown. Kinds are made as they come."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        self._failed: dict[str, int] = {}

    def add(self, kind: str, seconds: float, *, ok: bool = True) -> None:
        counts = self._counts.setdefault(kind, [0] * (len(BOUNDS) + 1))
        counts[bisect_left(BOUNDS, seconds)] += 1
        self._sums[kind] = self._sums.get(kind, 0.0) + seconds
        self._failed[kind] = self._failed.get(kind, 0) + (not ok)

    def shown(self) -> dict[str, Took]:
        return {
            kind: Took(bounds=BOUNDS, counts=list(counts), sum_s=self._sums[kind], failed=self._failed[kind])
            for kind, counts in self._counts.items()
        }
