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


def even_out(advantages: Sequence[Tensor], kept: Sequence[Tensor | None], domains: Sequence[str]) -> list[Tensor]:
    """Scales each task's advantages so that all have one root mean square over the tokens that count: that of all
    together.

    advantages: one [n] a row, n ≥ 0 trained tokens; kept: [n] bool each, None: all count; domains: the row's task. A
    task whose advantages are all 0 keeps them, and does not count for the others.
    """
    counted = [x.double() if k is None else x[k].double() for x, k in zip(advantages, kept, strict=True)]
    of_task: dict[str, list[Tensor]] = {}
    for x, task in zip(counted, domains, strict=True):
        of_task.setdefault(task, []).append(x)
    moving = {task: x for task, mine in of_task.items() if bool(((x := torch.cat(mine)) != 0).any())}
    if not moving:
        return list(advantages)
    whole = _size(torch.cat(list(moving.values())))
    scale = {task: whole / _size(x) for task, x in moving.items()}
    return [(x.double() * scale.get(task, 1.0)).to(x.dtype) for x, task in zip(advantages, domains, strict=True)]


def _size(values: Tensor) -> float:
    """Their root mean square."""
    return float(values.square().mean().sqrt())


def _apart(domains: Sequence[str]) -> list[Tensor]:
    """Indices of each task's members."""
    places: dict[str, list[int]] = {}
    for at, name in enumerate(domains):
        places.setdefault(name, []).append(at)
    return [torch.tensor(mine, dtype=torch.int64) for mine in places.values()]
