"""Advantages of several tasks beside one another.

In: advantages or rewards, and which task each belongs to. Out: the same, made comparable task by task. Pure arithmetic
on tensors. Leaves what an advantage is to advantages.py.

Most algorithms compare an episode with its own group, and so with its own task alone: what differs between tasks is the
size of their rewards, which the division by the group's standard deviation takes out as well, where it is on. `batch`
(REINFORCE++) and `reward` (REINFORCE) are the ones that mix tasks: a task with larger rewards outweighs the others, and
with `batch` an easy task's failures are worse than a hard one's successes are good.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rockroll.train.advantages import batch_advantages


def whiten_apart(rewards: Tensor, domains: Sequence[str]) -> Tensor:
    """REINFORCE++ advantages within each task: `batch_advantages` of each task's episodes alone.

    rewards: [N]; domains: [N] names. Returns [N] in float32.
    """
    found = torch.zeros(len(rewards))
    for mine in _apart(domains):
        found[mine] = batch_advantages(rewards[mine])
    return found


def even_out(advantages: Sequence[Tensor], domains: Sequence[str]) -> list[Tensor]:
    """Scales each task's advantages so that all have one root mean square over their tokens: that of all together.

    advantages: one [n] a row, n ≥ 0 trained tokens; domains: the row's task. A task whose advantages are all 0 keeps
    them, and does not count for the others.
    """
    sizes = [len(row) for row in advantages]
    flat = torch.cat(list(advantages)) if advantages else torch.zeros(0)
    of_token = [name for name, n in zip(domains, sizes, strict=True) for _ in range(n)]
    scaled = flat.clone()
    moving = [mine for mine in _apart(of_token) if bool((flat[mine] != 0).any())]
    if moving:
        whole = flat[torch.cat(moving)].double().square().mean().sqrt()
        for mine in moving:
            scaled[mine] = (flat[mine].double() * whole / flat[mine].double().square().mean().sqrt()).to(flat.dtype)
    return list(scaled.split(sizes))


def _apart(domains: Sequence[str]) -> list[Tensor]:
    """Indices of each task's members."""
    places: dict[str, list[int]] = {}
    for at, name in enumerate(domains):
        places.setdefault(name, []).append(at)
    return [torch.tensor(mine, dtype=torch.int64) for mine in places.values()]
