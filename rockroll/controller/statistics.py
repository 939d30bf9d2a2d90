"""Numbers about a set of episodes.

In: episodes and groups. Out: a metrics row's entries, pass rates with their interval. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rockroll.rollout.sample import OUTCOMES, PASS, Episode, Group


def pass_rate(episodes: Sequence[Episode]) -> float:
    """Share of the valid episodes whose reward is at least 1; nan where none is valid."""
    rewards = [e.reward for e in episodes if e.reward is not None]
    return sum(r >= PASS for r in rewards) / len(rewards) if rewards else math.nan


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927, JASA 22:209, eq. for p given p̂ and n)."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def batch_row(groups: Sequence[Group], version: int) -> dict[str, float]:
    """reward/*, episodes/*, turns/*, staleness/*, tokens/* of one training batch.

    version: the trainer's before the step.

    Staleness of a token: that version minus the one which sampled it.
    """
    episodes = [e for group in groups for e in group.episodes]
    rewards = [e.reward for e in episodes if e.reward is not None]
    ages = [
        version - v
        for e in episodes
        for sample in e.samples
        for v, sampled in zip(sample.versions, sample.mask, strict=True)
        if sampled
    ]
    counts = {outcome: sum(e.outcome == outcome for e in episodes) for outcome in OUTCOMES}
    for group in groups:
        for outcome, n in group.discarded.items():
            counts[outcome] = counts.get(outcome, 0) + n  # type: ignore[index]
    return {
        "reward/mean": sum(rewards) / len(rewards),
        "reward/pass_rate": pass_rate(episodes),
        **{f"episodes/{outcome}": n for outcome, n in counts.items()},
        "episodes/turns_mean": sum(e.turns for e in episodes) / len(episodes),
        "staleness/mean": sum(ages) / len(ages) if ages else 0.0,
        "staleness/max": max(ages, default=0),
        "turns/incomplete": sum(sum(group.incomplete.values()) for group in groups),
        "tokens/sampled": len(ages),
        "tokens/wasted": sum(group.wasted_tokens for group in groups),
    }
