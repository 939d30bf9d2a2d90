"""Pass rates, intervals and a batch's row, against cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from rockroll.controller.statistics import batch_row, pass_rate, wilson
from rockroll.rollout.sample import Episode, Group, Sample


def episode(reward: float | None, outcome: str = "ok", versions: tuple[int, ...] = (3, 3)) -> Episode:
    n = len(versions)
    sample = Sample([1, *range(n)], [False] + [True] * n, [0.0] + [-1.0] * n, [-1, *versions])
    return Episode("e", "t", 0, 0, 0, outcome, None, reward, [sample], 1, 0.1)  # type: ignore[arg-type]


def test_pass_rate_counts_valid_episodes_only() -> None:
    assert pass_rate([episode(1.0), episode(0.5), episode(None, "infra_error")]) == 0.5
    assert math.isnan(pass_rate([episode(None, "infra_error")]))


def test_wilson_interval() -> None:
    # by hand for 8 of 10: (0.8 + 1.92073/10 ± 1.959964·sqrt(0.016 + 0.0096036)) / 1.384146
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.4901625) and high == pytest.approx(0.9433178)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 5)[0] == pytest.approx(0.0) and wilson(5, 5)[1] == pytest.approx(1.0)


def test_a_batch_row_counts_outcomes_and_ages() -> None:
    groups = [
        Group(0, "t", 0, [episode(1.0), episode(0.0, versions=(3, 4))], wasted_tokens=7, discarded={"infra_error": 2})
    ]
    row = batch_row(groups, version=4)
    assert row["reward/mean"] == 0.5 and row["reward/pass_rate"] == 0.5
    assert row["episodes/ok"] == 2 and row["episodes/infra_error"] == 2 and row["episodes/cancelled"] == 0
    assert row["staleness/mean"] == 0.75 and row["staleness/max"] == 1
    assert row["tokens/wasted"] == 7 and row["tokens/sampled"] == 4
