"""GRPO advantages, against plain Python and by hand."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rockroll.train.advantages import group_advantages


def advantages(rewards: list[float], group: list[int], **options: bool) -> list[float]:
    return group_advantages(torch.tensor(rewards), torch.tensor(group), **options).tolist()


def plain(rewards: list[float], group: list[int], eps: float = 1e-6) -> list[float]:
    out = []
    for reward, g in zip(rewards, group, strict=True):
        mine = [r for r, other in zip(rewards, group, strict=True) if other == g]
        same = max(mine) == min(mine)
        out.append(0.0 if same else (reward - statistics.fmean(mine)) / (statistics.pstdev(mine) + eps))
    return out


def test_by_hand():
    assert advantages([1, 0, 0, 0], [5, 5, 5, 5]) == pytest.approx([math.sqrt(3), *[-1 / math.sqrt(3)] * 3], rel=1e-5)
    assert advantages([1, 0, 3, 1], [0, 0, 1, 1]) == pytest.approx([1, -1, 1, -1], rel=1e-5)


def test_without_std_only_the_mean_is_taken_away():
    assert advantages([1, 0, 0, 0], [0, 0, 0, 0], normalise=False) == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_equal_rewards_give_exactly_zero_not_noise_over_eps():
    assert advantages([0.1] * 7 + [1.0, 0.0], [0] * 7 + [1, 1])[:7] == [0.0] * 7


def test_groups_may_be_interleaved_and_named_by_any_number():
    assert advantages([1, 5, 0, 7], [90, -2, 90, -2]) == pytest.approx([1, -1, -1, 1], rel=1e-5)


def test_a_group_of_one_is_refused_by_name():
    with pytest.raises(ValueError, match=r"groups \[4\] have one"):
        advantages([1, 0, 1], [3, 3, 4])


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        advantages([1, float("nan")], [0, 0])


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-10, 10, width=32)), min_size=1, max_size=20))
def test_same_as_plain_python(pairs: list[tuple[int, float]]):
    group = [g for g, _ in pairs] + [g for g, _ in pairs]
    rewards = [r for _, r in pairs] + [r / 2 for _, r in pairs]
    assert advantages(rewards, group) == pytest.approx(plain(rewards, group), rel=1e-3, abs=1e-3)
