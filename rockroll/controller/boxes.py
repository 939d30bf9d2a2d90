"""Which sandboxes a run needs: what kinds, for which tasks, how many of each.

In: a RunConfig. Out: kinds and numbers. Leaves starting them to parts.py and showing them to recipe/plan.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from rockroll.agent.config import AgentConfig
from rockroll.agent.install import folder, image_name
from rockroll.agent.presets import FOLDER, Preset
from rockroll.controller.config import RunConfig
from rockroll.errors import UsageError
from rockroll.rollout.domain import shares
from rockroll.rollout.tasks import brings_boxes, takes_boxes
from rockroll.sandbox.config import SandboxConfig
from rockroll.units import size


def boxes(config: RunConfig) -> dict[str, SandboxConfig]:
    """What the sandboxes are, by the name of the task, of those that work in some. UsageError for an unknown task, and
    for a box that is too small for its agent."""
    if (one := config.task) is not None:
        takes = config.agent or one.where == "sandbox"
        return {one.label: _with(config.agent, config.sandbox, one.env)} if takes else {}
    return {
        task.name: _with(
            None if task.where == "sandbox" else task.agent or config.agent, task.sandbox or config.sandbox, task.env
        )
        for task in config.tasks
        if takes_boxes(task)
    }


def own_boxes(config: RunConfig, tasks: Sequence[str]) -> bool:
    """Whether the episodes of those tasks, which are alike in this, start a box each: none is kept ready for them."""
    first = next(task for task in config.domains if task.label == tasks[0])
    return first.where != "sandbox" and brings_boxes(first.env)


def installed(config: RunConfig) -> list[tuple[Preset, bool]]:
    """The presets of the run's agents that have packages, each once, and whether boxes stand on an image with it."""
    agents = [config.agent, *(task.agent for task in config.tasks)]
    found = {known.name: known for agent in agents if agent and (known := agent.known) and known.installs}
    images = {box.image for box in boxes(config).values()}
    return [(each, image_name(each) in images) for each in found.values()]


def _with(agent: AgentConfig | None, box: SandboxConfig, env: str) -> SandboxConfig:
    """The box with its agent's packages: in the image, where that is rockroll's own, else as a read-only folder."""
    known = agent.known if agent else None
    if known is None:
        return box
    if box.memory_bytes < size(known.memory):
        raise UsageError(
            f"agent preset {known.name} needs boxes of {known.memory} memory at least; got sandbox memory: {box.memory}"
        )
    if not known.installs:
        return box
    if box.image is None and box.snapshot is None and not brings_boxes(env):
        return dataclasses.replace(box, image=image_name(known))
    return dataclasses.replace(box, mounts=(*box.mounts, f"{folder(known)}:{FOLDER}/{known.name}:ro"))


def pool_sizes(config: RunConfig) -> list[tuple[SandboxConfig, list[str], int]]:
    """(what a box is, the tasks that work in such boxes, how many at most): tasks whose boxes are alike share them.
    Each kind has its tasks' share of `rollout.concurrency`, rounded up."""
    part = shares(config.domains)
    kinds: list[tuple[SandboxConfig, list[str]]] = []
    for name, box in boxes(config).items():
        own = own_boxes(config, [name])
        alike = next((tasks for each, tasks in kinds if each == box and own_boxes(config, tasks) == own), None)
        if alike is None:
            kinds.append((box, [name]))
        else:
            alike.append(name)
    return [
        (box, tasks, math.ceil(config.rollout.concurrency * sum(part[name] for name in tasks) - 1e-9))
        for box, tasks in kinds
    ]
