"""Several tasks in one run: which, how much of each, and how hard.

In: the recipe's `tasks` and `rollout.curriculum` sections. Out: checked, frozen values. Leaves one task to config.py,
drawing them to mixture.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rockroll.agent.config import AgentConfig
from rockroll.agent.team import TeamConfig
from rockroll.rollout.config import TaskConfig
from rockroll.sandbox.config import SandboxConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class DomainConfig(TaskConfig):
    """One of several tasks: what `task` takes, a name for its metrics, and what it has of its own."""

    name: str
    """Stands in its metrics, as in reward/mean/NAME."""
    weight: float = 1.0
    """How much of the training it is, beside the others' weights: exact at any time to one group."""
    agent: AgentConfig | None = None
    """The program that works on it; left out: the recipe's `agent`, for a task that needs one."""
    team: TeamConfig | None = None
    """In place of `agent`: several agents that work on it together."""
    sandbox: SandboxConfig | None = None
    """Its boxes; left out: the recipe's `sandbox`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not NAME.fullmatch(self.name):
            raise ValueError(f"tasks name is letters, digits and _ . -, as in shell-easy; got {self.name!r}")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"tasks weight is a number above 0; got {self.weight}; to leave a task out, delete it")

        one_crew(self.agent, self.team, f"tasks {self.name}: ")

    @property
    def label(self) -> str:
        return self.name

    @property
    def crew(self) -> AgentConfig | TeamConfig | None:
        """Who works on it, where it says so."""
        return self.agent or self.team


def one_crew(agent: AgentConfig | None, team: TeamConfig | None, where: str = "") -> None:
    """ValueError where both are given."""
    if agent is not None and team is not None:
        raise ValueError(f"{where}one agent works, as in agent: {{…}}, or several, as in team: {{agents: …}}; got both")


def check(tasks: Sequence[TaskConfig]) -> None:
    """ValueError where two tasks of one run have one name."""
    names = [task.label for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"tasks have a name each; {name!r} stands there {names.count(name)} times")


def weight(task: TaskConfig) -> float:
    return task.weight if isinstance(task, DomainConfig) else 1.0


def shares(tasks: Sequence[TaskConfig]) -> dict[str, float]:
    """Each task's part of the whole, by name; they add up to 1."""
    total = sum(weight(task) for task in tasks)
    return {task.label: weight(task) / total for task in tasks}


def at_level(task: TaskConfig, level: int) -> TaskConfig:
    """The task with the options of that level laid over its own; itself where it has no levels."""
    if not task.levels:
        return task
    return replace(task, options={**task.options, **task.levels[level]}, levels=())


@dataclass(frozen=True)
class HeldOut:
    """One held-out situation of an evaluation."""

    task: str
    seed: int
    level: int = 0


def held_out(tasks: Sequence[TaskConfig], episodes: int) -> list[HeldOut]:
    """The held-out set: so many in all, each task's part of them by its share (at least one, largest remainders
    first), its levels in turn. The same for every evaluation of a run."""
    if not episodes:
        return []
    part = shares(tasks)
    exact = {name: share * episodes for name, share in part.items()}
    counts = {name: max(1, int(n)) for name, n in exact.items()}
    for name in sorted(exact, key=lambda name: int(exact[name]) - exact[name]):
        counts[name] += sum(counts.values()) < episodes
    return [
        HeldOut(task.label, seed, seed % max(1, len(task.levels)))
        for task in tasks
        for seed in range(counts[task.label])
    ]
