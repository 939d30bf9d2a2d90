"""Advantages, against plain Python and by hand."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rockroll.train.advantages import (
    batch_advantages,
    discounted_returns,
    gae,
    gigpo_advantages,
    group_advantages,
    leave_one_out,
    turn_advantages,
)


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


# ---------------------------------------------------------------------------------------------------------------
# The others
# ---------------------------------------------------------------------------------------------------------------


def test_leave_one_out_by_hand():
    found = leave_one_out(torch.tensor([1.0, 0.5, 0.0, 3.0, 3.0]), torch.tensor([0, 0, 0, 1, 1]))
    assert found.tolist() == pytest.approx([0.75, 0.0, -0.75, 0.0, 0.0])
    with pytest.raises(ValueError, match="have one"):
        leave_one_out(torch.tensor([1.0]), torch.tensor([0]))


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=12))
def test_leave_one_out_is_that_of_plain_python(rewards: list[float]):
    found = leave_one_out(torch.tensor(rewards), torch.zeros(len(rewards), dtype=torch.int64)).tolist()
    expected = [r - statistics.fmean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_batch_advantages_by_hand():
    assert batch_advantages(torch.tensor([3.0, 1.0, 2.0, 2.0])).tolist() == pytest.approx(
        [math.sqrt(2), -math.sqrt(2), 0, 0]
    )
    assert batch_advantages(torch.tensor([0.1] * 3)).tolist() == [0.0] * 3
    assert batch_advantages(torch.tensor([7.0])).tolist() == [0.0]


@given(st.lists(st.floats(-10, 10), max_size=8), st.floats(0, 1))
def test_discounted_returns_are_those_of_the_definition(rewards: list[float], gamma: float):
    expected = [sum(gamma ** (j - k) * rewards[j] for j in range(k, len(rewards))) for k in range(len(rewards))]
    assert discounted_returns(rewards, gamma) == pytest.approx(expected, abs=1e-9)


def test_turns_of_a_group_of_one_episode_are_compared_and_a_lone_turn_gets_nothing():
    found = turn_advantages(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1]), normalise=False)
    assert found.tolist() == [0.5, -0.5, 0.0]


def test_gigpo_by_hand():
    returns, group = torch.tensor([1.0, 0.0, 4.0, 9.0, 2.0]), torch.tensor([0, 0, 0, 1, 1])
    assert gigpo_advantages(returns, group, ["a", "a", "b", "a", "a"]).tolist() == pytest.approx(
        [1, -1, 0, 1, -1], rel=1e-4
    )


def plain_gae(rewards: list[float], values: list[float], mask: list[bool], gamma: float, lam: float) -> list[float]:
    """The sum of the definition, over the sampled tokens alone."""
    steps = [i for i, m in enumerate(mask) if m]
    v = [values[i] for i in steps] + [0.0]
    deltas = [rewards[i] + gamma * v[k + 1] - v[k] for k, i in enumerate(steps)]
    out = [0.0] * len(mask)
    for k, i in enumerate(steps):
        out[i] = sum((gamma * lam) ** (j - k) * deltas[j] for j in range(k, len(steps)))
    return out


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.booleans()), min_size=1, max_size=12),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_gae_is_that_of_plain_python_and_skips_holes(tokens: list[tuple[float, float, bool]], gamma: float, lam: float):
    mask = [m for _, _, m in tokens]
    rewards, values = [r if m else 0.0 for r, _, m in tokens], [v for _, v, _ in tokens]
    found, returns = gae(
        *(torch.tensor(x, dtype=torch.float64) for x in (rewards, values)), torch.tensor(mask), gamma=gamma, lam=lam
    )
    expected = plain_gae(rewards, values, mask, gamma, lam)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    assert returns.tolist() == pytest.approx(
        [a + v if m else 0.0 for a, v, m in zip(expected, values, mask, strict=True)], abs=1e-9
    )


def test_gae_with_lambda_1_is_the_return_minus_the_value_whatever_stands_between():
    found, _ = gae(
        torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]),
        torch.tensor([0.25, 9.0, 0.5, 9.0, 0.75]),
        torch.tensor([True, False, True, False, True]),
    )
    assert found.tolist() == pytest.approx([0.75, 0, 0.5, 0, 0.25])


def test_gae_of_nothing_sampled_is_nothing_and_a_reward_on_a_hole_is_refused():
    zeros = torch.zeros(3)
    none = torch.tensor([False] * 3)
    assert gae(zeros, zeros, none)[0].tolist() == [0.0] * 3
    with pytest.raises(ValueError, match="belongs to a sampled token"):
        gae(torch.ones(3), zeros, none)
