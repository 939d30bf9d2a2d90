"""The end of an episode: what it raised as what happened, and its record.

In: the work of an attempt, its place, its watch, the dialogue of each of its agents. Out: an Ending, then an Episode;
one way for an agent that works alone and for several. Leaves the work itself to episode.py and team_episode.py, and
whose doing it was to verdict.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from rockroll.env.api import Split
from rockroll.errors import (
    EnvError,
    HostError,
    ImageMissing,
    LimitNotEnforced,
    PeerLost,
    ProcessDied,
    RockrollError,
    SandboxError,
    SandboxLost,
)
from rockroll.rollout.clock import TimeUp, Watch
from rockroll.rollout.config import TaskConfig
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.grade import time_up
from rockroll.rollout.sample import AgentRecord, Episode, Placed
from rockroll.rollout.verdict import TABLE, AgentRun, Happened, Verdict, of_agent, of_time

FATAL = (HostError, ImageMissing, LimitNotEnforced, PeerLost, ProcessDied)
"""Failures that the next episode would meet too: they end the batch."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which episode this is."""

    id: str
    seed: int
    split: Split
    group: int
    index: int
    level: int = 0


@dataclass(frozen=True)
class Ending:
    """How an episode ended, and what it earned (None where that does not count)."""

    happened: Happened
    earned: float | None = None
    detail: str = ""
    log: str = ""
    """The end of what the agent said, where it worked alone."""

    @property
    def verdict(self) -> Verdict:
        """How it is counted, whose doing it was, what becomes of its score."""
        return TABLE[self.happened]

    def reward(self, config: TaskConfig) -> float | None:
        """What that task pays for it; None where it is not scored."""
        return {"earned": self.earned, "failure": config.failure_reward, "replaced": None}[self.verdict.score]


async def ending_of(work: Coroutine[Any, Any, Ending], watch: Watch, talks: Mapping[str, Dialogue]) -> Ending:
    """How that work ended, with what it raises turned into what happened. Raises only what is FATAL."""
    try:
        return await work
    except TimeUp as up:
        for dialogue in talks.values():
            dialogue.killed()
        return Ending(of_time(up.expired), None, time_up(up, watch.clock.spent))
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        # Nobody cancelled this episode, but something that it awaited, such as a task of the environment's own.
        happened: Happened = "env_raised" if watch.clock.holder == "env" else "ours_failed"
        return Ending(happened, None, f"what it waited for was cancelled, while it was with {watch.clock.holder}")
    except EnvError as error:
        return Ending("env_raised", None, str(error))
    except SandboxLost as error:
        cause = error.fields.get("cause") if "agent" in watch.clock.spent else None
        asked = any(dialogue.asked for dialogue in talks.values())
        return Ending(of_agent(AgentRun(asked=asked, outcome="lost", box=cause)), None, str(error))
    except FATAL:
        raise
    except SandboxError as error:
        return Ending("ours_failed", None, str(error))
    except RockrollError as error:
        return Ending("engine_failed", None, str(error))


def recorded(
    place: Place,
    task: str,
    ending: Ending,
    reward: float | None,
    talks: Mapping[str, Dialogue],
    watch: Watch,
    at: Placed | None,
    *,
    turn_rewards: Iterable[float] = (),
    agents: Iterable[AgentRecord] = (),
) -> Episode:
    """The record of an episode that is over.

    task: its name. talks: by agent, "" for one that works alone; what was asked and not answered in one that is thrown
    away is nobody's fault from here on. at: where its first sandbox was, if it had one.
    """
    spent = watch.clock.spent
    took = sum(seconds for name, seconds in spent.items() if name != "pool")
    outcome, cause, _ = ending.verdict
    if outcome not in ("ok", "truncated"):
        for dialogue in talks.values():
            dialogue.killed()
    put = msgspec.structs.replace
    return Episode(
        id=place.id,
        task=task,
        seed=place.seed,
        group=place.group,
        index=place.index,
        outcome=outcome,
        cause=cause,
        reward=reward,
        samples=[put(each, agent=name) for name, talk in talks.items() for each in talk.transcript.samples()],
        turns=sum(talk.turns for talk in talks.values()),
        duration_s=took,
        detail=ending.detail,
        turn_rewards=list(turn_rewards),
        record=[put(each, agent=name) for name, talk in talks.items() for each in talk.record],
        happened=ending.happened,
        log=ending.log,
        level=place.level,
        spent_s={name: round(seconds, 4) for name, seconds in spent.items()},
        began_at=time.time() - took,
        sandbox=at.sandbox if at else "",
        node=at.node if at else "",
        agents=list(agents),
    )
