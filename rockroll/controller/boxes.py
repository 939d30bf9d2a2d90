"""Which sandboxes a run needs: what kinds, for which tasks, how many of each.

In: a RunConfig. Out: kinds and numbers. Leaves starting them to parts.py and showing them to recipe/plan.py.
"""

from __future__ import annotations

import math

from rockroll.controller.config import RunConfig
from rockroll.rollout.domain import shares
from rockroll.rollout.tasks import works_in_sandbox
from rockroll.sandbox.config import SandboxConfig


def boxes(config: RunConfig) -> dict[str, SandboxConfig]:
    """What the sandboxes are, by the name of the task, of those that work in some. UsageError for an unknown task."""
    if config.task is not None:
        return {config.task.label: config.sandbox} if config.agent else {}
    return {task.name: task.sandbox or config.sandbox for task in config.tasks if works_in_sandbox(task.env)}


def pool_sizes(config: RunConfig) -> list[tuple[SandboxConfig, list[str], int]]:
    """(what a box is, the tasks that work in such boxes, how many): tasks whose boxes are alike share them, and each
    kind has its tasks' share of `rollout.concurrency`, rounded up."""
    part = shares(config.domains)
    kinds: list[tuple[SandboxConfig, list[str]]] = []
    for name, box in boxes(config).items():
        alike = next((tasks for each, tasks in kinds if each == box), None)
        if alike is None:
            kinds.append((box, [name]))
        else:
            alike.append(name)
    return [
        (box, tasks, math.ceil(config.rollout.concurrency * sum(part[name] for name in tasks) - 1e-9))
        for box, tasks in kinds
    ]
