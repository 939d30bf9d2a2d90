"""What every trained token's advantage was, in few words: for the run's records.

In: the rows of a step, their advantages filled in. Out: for each sample the runs of neighbouring tokens that share one
advantage. Pure. Leaves whose tokens they are, and where they are kept, to the controller.
"""

from __future__ import annotations

from collections.abc import Sequence

from rockroll.train.batch import Row

Span = tuple[int, int, float]
"""ids[start:end] were trained, each with this advantage."""
DIGITS = 4
"""Significant ones: what a person reads, and a quarter of the bytes."""


def spans(rows: Sequence[Row], samples: int, limit: int) -> list[list[Span]]:
    """[samples] in each the first `limit` spans, in order. A sample that trains nothing has none.

    Advantages of an episode or a turn make one span for each answer; GAE makes up to one for each token, so that the
    limit bounds what a record takes.
    """
    found: list[list[Span]] = [[] for _ in range(samples)]
    for row in rows:
        mine = found[row.sample]
        start = end = -1
        value = 0.0
        for at, advantage in zip(row.positions.tolist(), row.advantages.tolist(), strict=True):
            if at + 1 == end and advantage == value:
                end += 1
                continue
            if start >= 0:
                mine.append((start, end, _short(value)))
            if len(mine) == limit:
                start = -1
                break
            start, end, value = at + 1, at + 2, advantage
        if start >= 0:
            mine.append((start, end, _short(value)))
    return found


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
