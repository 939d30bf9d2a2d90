"""How many creations may be under way at once, decided by how fast the host answers.

In: how long each one took. Out: a limit that grows by one a round and shrinks by a share when answers become slow, as
TCP does it (AIMD). Pure: no clock, no task. Leaves who goes first to turns.py and the waiting to admission.py.

    a round = as many answers as the limit allows at once
    mean of the round ≤ TOLERANCE × best ──► limit + 1, where the whole limit was in use
                      > TOLERANCE × best ──► limit × BACKOFF, the next round begins anew
"""

from __future__ import annotations

import math

TOLERANCE = 3.0
"""A mean this many times the best latency means that work stands in a queue inside Podman rather than here. On two
cores a lone start takes 71 ms and the rate is flat (22-25 a second) from four at once on: 3 × 71 ms is five at once."""
BACKOFF = 0.75
DRIFT = 0.0005
"""The best latency is forgotten by this share an answer: a host with a thousand boxes answers three times slower than
an empty one for good (19 a second falls to 7), and 1,900 answers let the best grow 2.6 times."""
STARTS_PER_CORE = 2
"""The first limit, before anything is known: what two cores were measured to bear."""
MOST_PER_CORE = 16


class Aimd:
    """`limit` may be asked at any time; `done` tells it of every answer.

    least, most: the limit stays between; a core with nothing to start is a core lost, so least is one a core.
    """

    def __init__(self, cores: int, *, least: int | None = None, most: int | None = None) -> None:
        self._least = least or cores
        self._most = max(self._least, most or MOST_PER_CORE * cores)
        self._limit = float(min(self._most, max(self._least, STARTS_PER_CORE * cores)))
        self._best: dict[str, float] = {}
        self._round: list[float] = []
        """The answers of this round, each as a multiple of the best of its kind."""
        self._used = False

    @property
    def limit(self) -> int:
        """How many may be under way at once; at least one."""
        return math.floor(self._limit)

    def done(self, kind: str, took_s: float, *, full: bool, ok: bool = True) -> None:
        """One answer.

        kind: "start", "remove", …: each has a best latency of its own. full: whether the whole limit was in use.
        ok: a failure that came quickly says nothing about load; one that took long does.
        """
        best = self._best.get(kind)
        if not ok and (best is None or took_s <= TOLERANCE * best):
            return
        best = took_s if best is None else min(took_s, best * (1 + DRIFT))
        self._best[kind] = best
        self._round.append(took_s / best if best > 0 else 1.0)
        self._used = self._used or full
        if len(self._round) >= self.limit:
            self._decide()

    def _decide(self) -> None:
        slow = sum(self._round) / len(self._round) > TOLERANCE
        if slow:
            self._limit = max(float(self._least), self._limit * BACKOFF)
        elif self._used:
            self._limit = min(float(self._most), self._limit + 1)
        self._round.clear()
        self._used = False
