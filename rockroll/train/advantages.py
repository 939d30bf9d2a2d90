"""Rewards in, advantages out. Pure arithmetic on tensors.

In: one reward and one group index per episode. Out: one advantage per episode. Leaves spreading it over the
episode's tokens to batch.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, group: Tensor, *, normalise: bool = True, std_eps: float = 1e-6) -> Tensor:
    """GRPO advantages: each reward against the others of its task (arXiv 2402.03300, eq. 3).

    rewards: [N] one scalar per valid episode. group: [N] int group index, any values.
    Returns [N] in float32: (reward - mean) / (std + std_eps) within the group; std is the population's (over n,
    not n - 1). normalise=False leaves out the division (arXiv 2503.20783).
    A group whose rewards are all equal gets 0, not noise over eps.
    Raises ValueError where a group has one member: it has nothing to compare with.
    """
    r = rewards.to(torch.float64)
    if not bool(torch.isfinite(r).all()):
        raise ValueError(f"rewards must be finite numbers; got {rewards.tolist()}")
    names, index, count = torch.unique(group, return_inverse=True, return_counts=True)
    if bool((count < 2).any()):
        alone = names[count < 2].tolist()
        raise ValueError(
            f"a group needs 2 episodes or more to compare; groups {alone} have one: drop them or add to them"
        )

    def per_group(values: Tensor, reduce: str) -> Tensor:
        return torch.zeros(len(names), dtype=r.dtype).scatter_reduce(0, index, values, reduce, include_self=False)[
            index
        ]

    centred = r - per_group(r, "mean")
    equal = per_group(r, "amax") == per_group(r, "amin")
    if normalise:
        centred = centred / (per_group(centred**2, "mean").sqrt() + std_eps)
    return centred.masked_fill(equal, 0.0).to(torch.float32)
