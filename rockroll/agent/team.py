"""Several agents in one episode: who they are, in which sandboxes, in what order, and when it is over.

In: the recipe's `team` section. Out: a checked TeamConfig. Leaves the first sandbox to the section `sandbox`, running
them to the rollout room, and what each earns to the task.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from rockroll.agent.config import AgentConfig
from rockroll.sandbox.config import SandboxConfig

MAIN = "main"
"""The sandbox of the recipe's section `sandbox`, or of the task's own image."""
MOST = 16
"""Agents of a team: a box has so many model endpoints."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, kw_only=True)
class MemberConfig(AgentConfig):
    """One agent of several: what `agent` takes, and its place among the others."""

    sandbox: str = MAIN
    """Which of the episode's sandboxes it works in."""
    role: str = ""
    """Said before the task's own instruction, in $ROCKROLL_INSTRUCTION."""
    takes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Files that it is given before it begins, from the sandboxes of agents that are before it: by agent's name, their
    absolute paths, the same here as there; one that ends with / is a folder, of which the files come. What is not there
    is left out. For `order: in_turn`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, paths in self.takes.items():
            for path in paths:
                if not path.startswith("/"):
                    raise ValueError(f"takes names files by their absolute path; got {path!r} of {name}")


@dataclass(frozen=True, kw_only=True)
class TeamConfig:
    """Agents that work on one task together. Each has its own model endpoint, budget, `task.max_turns` and reward."""

    agents: dict[str, MemberConfig]
    """By name: a word of small letters, digits and _, under which calls, records and metrics speak of it. The agent is
    told it in $ROCKROLL_AGENT."""
    sandboxes: dict[str, SandboxConfig] = field(default_factory=dict)
    """Further sandboxes of each episode, by name; `main` is the one of the section `sandbox`."""
    order: Literal["together", "in_turn"] = "together"
    """together: all begin at once. in_turn: one after another, in the order in which they stand here."""
    ends: str = "all"
    """The episode is over when all have ended, or when the agent of this name has: the others are stopped then."""
    on_crash: Literal["end", "go_on"] = "end"
    """What becomes of the episode when one agent breaks: the others are stopped, or go on without it."""

    def __post_init__(self) -> None:
        names = list(self.agents)
        if not 2 <= len(names) <= MOST:
            raise ValueError(
                f"a team has 2 to {MOST} agents; got {len(names)}: one alone is the section agent: {{command: …}}"
            )
        for name in (*names, *self.sandboxes):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"agents and sandboxes are called by small letters, digits and _, as in planner; got {name!r}"
                )
        if "all" in names:
            raise ValueError("no agent is called all: ends: all says that every one has to end")
        if MAIN in self.sandboxes:
            raise ValueError("the sandbox main is the recipe's section `sandbox`: put its settings there")
        for name, box in self.sandboxes.items():
            for setting in ("name", "ttl", "idle_ttl"):
                if getattr(box, setting) is not None:
                    raise ValueError(f"sandboxes {name}: {setting} is rockroll's to fill in; leave it out")
        known = (MAIN, *self.sandboxes)
        for name, agent in self.agents.items():
            if agent.sandbox not in known:
                raise ValueError(f"agent {name} works in one of the sandboxes {', '.join(known)}; got {agent.sandbox}")
            self._check_takes(name, agent)
        for name in known:
            if not any(agent.sandbox == name for agent in self.agents.values()):
                raise ValueError(f"no agent works in the sandbox {name}; leave it out, or name it in one's `sandbox`")
        if self.ends != "all" and self.ends not in names:
            raise ValueError(f"ends is all, or one of {', '.join(names)}; got {self.ends!r}")
        if self.order == "in_turn" and self.ends not in ("all", names[-1]):
            raise ValueError(
                f"in turn, who comes after {self.ends} would never begin: let it be the last, or ends: all"
            )

    def _check_takes(self, name: str, agent: MemberConfig) -> None:
        if agent.takes and self.order != "in_turn":
            raise ValueError(f"{name} takes files of agents that have ended: set order: in_turn")
        before = list(self.agents)[: list(self.agents).index(name)]
        for other in agent.takes:
            if other not in before:
                raise ValueError(
                    f"{name} takes files of agents before it ({', '.join(before) or 'there is none'}); got {other!r}"
                )

    @property
    def seats(self) -> dict[str, int]:
        """Which model endpoint of its sandbox each agent has, by agent."""
        taken: dict[str, int] = {}
        found: dict[str, int] = {}
        for name, agent in self.agents.items():
            found[name] = taken.get(agent.sandbox, 0)
            taken[agent.sandbox] = found[name] + 1
        return found


def box_key(task: str, sandbox: str) -> str:
    """What a run calls the pool of that sandbox of a task's episodes."""
    return task if sandbox == MAIN else f"{task}/{sandbox}"
