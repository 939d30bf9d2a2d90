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
from rockroll.agent.team import MAIN, TeamConfig, box_key
from rockroll.controller.config import RunConfig
from rockroll.errors import UsageError
from rockroll.rollout.domain import shares
from rockroll.rollout.tasks import Crew, brings_boxes, takes_boxes
from rockroll.sandbox.config import SandboxConfig
from rockroll.units import size


def boxes(config: RunConfig) -> dict[str, SandboxConfig]:
    """What the sandboxes are, by the name of the task, of those that work in some: the one that every episode has.
    UsageError for an unknown task, and for a box that is too small for its agent."""
    return {name: _with(_agents(crew, MAIN), box, env) for name, (crew, box, env) in _worked_on(config).items()}


def further_boxes(config: RunConfig) -> dict[str, tuple[str, SandboxConfig]]:
    """(task, what it is) of every sandbox that the episodes of teams have beside the first, by `box_key`."""
    return {
        box_key(name, other): (name, _with(_agents(crew, other), box, None))
        for name, (crew, _, _) in _worked_on(config).items()
        if isinstance(crew, TeamConfig)
        for other, box in crew.sandboxes.items()
    }


def own_boxes(config: RunConfig, tasks: Sequence[str]) -> bool:
    """Whether the episodes of those tasks, which are alike in this, start a box each: none is kept ready for them."""
    first = next((task for task in config.domains if task.label == tasks[0]), None)  # None: a team's further box
    return first is not None and first.where != "sandbox" and brings_boxes(first.env)


def installed(config: RunConfig) -> list[tuple[Preset, bool]]:
    """The presets of the run's agents that have packages, each once, and whether boxes stand on an image with it."""
    crews = [config.crew, *(task.crew for task in config.tasks)]
    agents = [agent for crew in crews for agent in _agents(crew)]
    found = {known.name: known for agent in agents if (known := agent.known) and known.installs}
    images = {box.image for box in boxes(config).values()} | {box.image for _, box in further_boxes(config).values()}
    return [(each, image_name(each) in images) for each in found.values()]


def _worked_on(config: RunConfig) -> dict[str, tuple[Crew | None, SandboxConfig, str]]:
    """Who works in what box on which environment, by the name of the task; nobody where an Env is played in it."""
    if (one := config.task) is not None:
        takes = config.crew or one.where == "sandbox"
        return {one.label: (config.crew, config.sandbox, one.env)} if takes else {}
    return {
        task.name: (
            None if task.where == "sandbox" else task.crew or config.crew,
            task.sandbox or config.sandbox,
            task.env,
        )
        for task in config.tasks
        if takes_boxes(task)
    }


def _agents(crew: Crew | None, sandbox: str | None = None) -> list[AgentConfig]:
    """Of a crew, or those that work in one of its sandboxes."""
    if isinstance(crew, TeamConfig):
        return [agent for agent in crew.agents.values() if sandbox in (None, agent.sandbox)]
    return [crew] if crew else []


def _with(agents: Sequence[AgentConfig], box: SandboxConfig, env: str | None) -> SandboxConfig:
    """The box with its agents' packages: in the image, where that is rockroll's own and they are one agent's, else as
    read-only folders. env: of the task whose own boxes may take its place."""
    presets = {known.name: known for agent in agents if (known := agent.known)}
    for known in presets.values():
        if box.memory_bytes < size(known.memory):
            raise UsageError(
                f"agent preset {known.name} needs boxes of {known.memory} memory at least; got sandbox memory: "
                f"{box.memory}"
            )
    packed = [known for known in presets.values() if known.installs]
    plain = box.image is None and box.snapshot is None and not (env and brings_boxes(env))
    if len(packed) == 1 and plain:
        return dataclasses.replace(box, image=image_name(packed[0]))
    mounts = (f"{folder(known)}:{FOLDER}/{known.name}:ro" for known in packed)
    return dataclasses.replace(box, mounts=(*box.mounts, *mounts)) if packed else box


def pool_sizes(config: RunConfig) -> list[tuple[SandboxConfig, list[str], int]]:
    """(what a box is, the tasks that work in such boxes, how many at most): tasks whose boxes are alike share them.
    Each kind has its tasks' share of `rollout.concurrency`, rounded up. A team's further boxes are its task's alone,
    under their `box_key`: an episode that has its first box and waits for the next must never wait for one that has
    that and waits for the first."""
    part = shares(config.domains)
    kinds: list[tuple[SandboxConfig, list[str]]] = []
    for name, box in boxes(config).items():
        own = own_boxes(config, [name])
        alike = next((tasks for each, tasks in kinds if each == box and own_boxes(config, tasks) == own), None)
        if alike is None:
            kinds.append((box, [name]))
        else:
            alike.append(name)

    def number(*tasks: str) -> int:
        return math.ceil(config.rollout.concurrency * sum(part[name] for name in tasks) - 1e-9)

    first = [(box, tasks, number(*tasks)) for box, tasks in kinds]
    return first + [(box, [key], number(task)) for key, (task, box) in further_boxes(config).items()]
