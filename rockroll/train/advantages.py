"""Rewards in, advantages out. Pure arithmetic on tensors.

In: one reward and one group index per episode, or per turn. Out: one advantage for each. Leaves spreading it over the
tokens to credit.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, group: Tensor, *, normalise: bool = True, std_eps: float = 1e-6) -> Tensor:
    """GRPO advantages: each reward against the others of its task (arXiv 2402.03300).

    rewards: [N] one scalar per valid episode. group: [N] int group index, any values.
    Returns [N] in float32: (reward - mean) / (std + std_eps) within the group; std is the population's (over n,
    not n - 1). normalise=False leaves out the division (Dr. GRPO, arXiv 2503.20783).
    A group whose rewards are all equal gets 0, not noise over eps.
    Raises ValueError where a group has one member: it has nothing to compare with.
    """
    r = _finite(rewards)
    _refuse_lone(group)
    return _against_group(r, group, normalise, std_eps)


def leave_one_out(rewards: Tensor, group: Tensor) -> Tensor:
    """RLOO advantages: reward minus the mean of the other members of its group (arXiv 2402.14740).

    rewards: [N]. group: [N] int. Returns [N] in float32: n/(n-1) times what group_advantages without normalisation
    gives. Raises ValueError where a group has one member.
    """
    r = _finite(rewards)
    _refuse_lone(group)
    _, index, count = torch.unique(group, return_inverse=True, return_counts=True)
    n = count[index].to(r.dtype)
    return (_centred(r, index, len(count)) * n / (n - 1)).to(torch.float32)


def batch_advantages(rewards: Tensor, *, std_eps: float = 1e-8) -> Tensor:
    """REINFORCE++ advantages: whitened over the whole batch, whatever the group (arXiv 2501.03262).

    rewards: [N]. Returns [N] in float32: (reward - mean) / (std + std_eps), std of the population. All 0 where the
    rewards are all equal, a batch of one included.
    """
    r = _finite(rewards)
    if bool((r == r[0]).all()):
        return torch.zeros(len(r))
    return ((r - r.mean()) / (r.std(unbiased=False) + std_eps)).to(torch.float32)


def discounted_returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """Return of each turn of one episode: G_k = r_k + γ·G_{k+1} (Sutton & Barto 2018, chapter 3).

    rewards: [K] in order of the turns. gamma: in [0, 1]. Returns [K].
    """
    returns: list[float] = []
    following = 0.0
    for reward in reversed(rewards):
        following = reward + gamma * following
        returns.append(following)
    return returns[::-1]


def turn_advantages(returns: Tensor, group: Tensor, *, normalise: bool = True, std_eps: float = 1e-6) -> Tensor:
    """Each turn's return against all turns of its group.

    returns: [M] of every turn of every episode. group: [M] int. Returns [M] in float32, as `group_advantages`; a group
    with one turn in all gets 0, since there is nothing to compare it with.
    """
    return _against_group(_finite(returns), group, normalise, std_eps)


def gigpo_advantages(
    returns: Tensor, group: Tensor, states: Sequence[str], *, normalise: bool = True, std_eps: float = 1e-6
) -> Tensor:
    """The step half of GiGPO: each turn against the turns of its group that began in the same state
    (arXiv 2505.10978). Keyed by (group, state): equal states of different tasks are not compared.

    returns: [M] discounted return of every turn. group: [M] int. states: [M] what names the state a turn began in.
    Returns [M] in float32; a state seen once in its group gets 0. The whole is the episode's group advantage plus
    ω times this.
    """
    keys: dict[tuple[int, str], int] = {}
    index = torch.tensor(
        [keys.setdefault((int(g), state), len(keys)) for g, state in zip(group.tolist(), states, strict=True)],
        dtype=torch.int64,
    )
    return _against_group(_finite(returns), index, normalise, std_eps)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates of one unbranched episode (arXiv 1506.02438), masked tokens skipped.

    rewards, values: [T] per token; mask: [T] bool, True on sampled tokens. Only those are steps: δ_t = r_t + γ·V_u -
    V_t where u is the next sampled token, and what stands between them (prompts, tool results) adds no step of
    discount. Rewards that stand on masked tokens are refused. The episode is over after its last sampled token.
    Returns ([T] advantages, [T] returns = advantage + value), 0 where mask is False; without gradient.
    """
    if bool((rewards[~mask] != 0).any()):
        raise ValueError("a reward belongs to a sampled token; one stands where mask is False")
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    steps: list[float] = []
    sampled = values[mask].tolist()  # numbers of Python's own: a tensor's elements one by one take fifty times as long
    following_value, following = 0.0, 0.0
    for reward, value in zip(reversed(rewards[mask].tolist()), reversed(sampled), strict=True):
        following = reward + gamma * following_value - value + gamma * lam * following
        following_value = value
        steps.append(following)
    advantages[mask] = torch.tensor(steps[::-1], dtype=values.dtype)
    returns[mask] = advantages[mask] + values[mask]
    return advantages, returns


def _finite(rewards: Tensor) -> Tensor:
    r = rewards.to(torch.float64)
    if not bool(torch.isfinite(r).all()):
        raise ValueError(f"rewards must be finite numbers; got {rewards.tolist()}")
    return r


def _refuse_lone(group: Tensor) -> None:
    names, count = torch.unique(group, return_counts=True)
    if bool((count < 2).any()):
        alone = names[count < 2].tolist()
        raise ValueError(
            f"a group needs 2 episodes or more to compare; groups {alone} have one: drop them or add to them"
        )


def _per_group(values: Tensor, index: Tensor, groups: int, reduce: str) -> Tensor:
    return torch.zeros(groups, dtype=values.dtype).scatter_reduce(0, index, values, reduce, include_self=False)[index]


def _centred(r: Tensor, index: Tensor, groups: int) -> Tensor:
    """r minus its group's mean; exactly 0 where all of the group are equal."""
    equal = _per_group(r, index, groups, "amax") == _per_group(r, index, groups, "amin")
    return (r - _per_group(r, index, groups, "mean")).masked_fill(equal, 0.0)


def _against_group(r: Tensor, group: Tensor, normalise: bool, std_eps: float) -> Tensor:
    names, index = torch.unique(group, return_inverse=True)
    centred = _centred(r, index, len(names))
    if normalise:
        centred = centred / (_per_group(centred**2, index, len(names), "mean").sqrt() + std_eps)
    return centred.to(torch.float32)
