"""Several agents in one episode: who begins when, when it is over, and what each of them earned.

In: a TeamConfig, and what happened to each agent as it ended. Out: who begins now, whether it is over; in the end one
word for the episode and each agent's reward. Pure: no I/O, no clock. Leaves running them to team_episode.py, and whose
doing a word is to verdict.py.

    waiting ── its turn ──► at work ── ended ──► its word
       │                       └────── over ───► stopped
       └────── over ──► not_begun
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeGuard

from rockroll.agent.team import TeamConfig
from rockroll.errors import EnvError
from rockroll.rollout.verdict import TABLE, AgentRun, Happened

Fate = Happened | Literal["stopped", "not_begun"]
"""What happened to one agent."""

BOX_GONE: tuple[Happened, ...] = ("box_lost", "box_ended", "box_memory")
"""The sandbox is no more, whoever else worked in it: nothing goes on, and nothing can be graded."""
_CUT: tuple[Happened, ...] = ("budget", "agent_persisted", "agent_crashed")
"""Of what is scored as it stands: the words that an episode may get, the first that fits."""


def broke(happened: str) -> bool:
    """Whether an agent that ended so is one that broke: its end in order or at a budget that it knows of is none."""
    return happened == "agent_crashed" or _score(happened) != "earned"


def of_member(happened: Happened, run: AgentRun) -> Happened:
    """One of several may have nothing to ask: where it ended in order, it did its part."""
    silent = happened == "agent_mute" and run.outcome == "ok" and run.exit_code == 0
    return "finished" if silent else happened


class Team:
    """One episode's agents. begin, then ended … until `over`; then what is left is stopped."""

    def __init__(self, config: TeamConfig) -> None:
        self._config = config
        self._waiting = list(config.agents)
        self.working: set[str] = set()
        self.fates: dict[str, Fate] = {}

    def begin(self) -> list[str]:
        """Who begins first."""
        return self._next(len(self._waiting) if self._config.order == "together" else 1)

    def ended(self, name: str, happened: Happened) -> list[str]:
        """That agent ended by itself, or at its own limit; who begins now."""
        if name not in self.working:
            raise ValueError(f"agent {name} ended, which was not at work")
        self.working.discard(name)
        self.fates[name] = happened
        return [] if self.over or self._config.order == "together" else self._next(1)

    @property
    def over(self) -> bool:
        """Nobody goes on, or is to go on."""
        if not (self.working or self._waiting) or self._config.ends in self.fates:
            return True
        ended = self.fates.values()
        return any(happened in BOX_GONE for happened in ended) or (
            self._config.on_crash == "end" and any(map(broke, ended))
        )

    def stop(self) -> None:
        """It is over: what is left gets its word."""
        for name in self.working:
            self.fates[name] = "stopped"
        for name in self._waiting:
            self.fates[name] = "not_begun"
        self.working, self._waiting = set(), []

    @property
    def failed(self) -> set[str]:
        """Agents whose end is scored with the task's failure_reward."""
        return {name for name, happened in self.fates.items() if _score(happened) == "failure"}

    def happened(self, asked: bool) -> tuple[Happened, str]:
        """The episode's word, and the agent that it is of ("": of none). asked: somebody asked the model something."""
        told: list[tuple[Happened, str]] = [(fate, name) for name, fate in self.fates.items() if _in_table(fate)]
        for happened, name in told:
            if happened in BOX_GONE:
                return happened, name
        ends = self._config.on_crash == "end"
        for happened, name in told:
            replaced = _score(happened) == "replaced"
            if replaced and (ends or happened != "agent_mute"):
                return happened, name
        if not asked:
            return "agent_mute", next((name for happened, name in told if happened == "agent_mute"), "")
        failed: list[tuple[Happened, str]] = [
            (happened, name) for happened, name in told if _score(happened) == "failure"
        ]
        if failed and (ends or len(failed) == len(self.fates)):
            return failed[0]
        for word in _CUT:
            for happened, name in told:
                if happened == word:
                    return happened, name
        return "finished", ""

    def _next(self, many: int) -> list[str]:
        begun, self._waiting = self._waiting[:many], self._waiting[many:]
        self.working |= set(begun)
        return begun


def _in_table(fate: Fate) -> TypeGuard[Happened]:
    return fate in TABLE


def _score(happened: str) -> str:
    row = TABLE.get(happened)  # pyright: ignore[reportArgumentType]  not in the table: stopped, not_begun
    return row.score if row else "earned"


def shares(task: str, grade: Any, names: list[str], failed: set[str], failure: float) -> dict[str, float]:
    """Each agent's reward. grade: what the task said, a number for all of them or a mapping by agent. failed: those
    that get `failure` instead. EnvError where the grade is neither, or leaves one out."""
    given: dict[Any, Any] = dict(grade) if isinstance(grade, Mapping) else dict.fromkeys(names, grade)
    if set(given) != set(names):
        raise EnvError(
            f"{task}: a grade is a number, or one for each of {', '.join(names)}; grade returned rewards for "
            f"{', '.join(map(str, given)) or 'nobody'}"
        )
    found: dict[str, float] = {}
    for name in names:
        try:
            found[name] = float(given[name])
        except (TypeError, ValueError):
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise EnvError(f"{task}: a reward is a finite number; grade returned {given[name]!r} for {name}")
    return {name: failure if name in failed else reward for name, reward in found.items()}


def mean(rewards: Mapping[str, float]) -> float:
    """The episode's own reward, of which pass rates are taken: it passes where each agent does."""
    return sum(rewards.values()) / len(rewards)
