"""Whose doing it was: from what happened to an episode to its outcome, its cause, and what becomes of its score.

In: what happened, as a word; for an agent's run, the facts that tell the word. Out: one row of a table. Pure: no I/O,
no clock. Leaves finding out what happened to episode.py and ending.py, and the times to clock.py.

    earned    scored with what it earned: the env's rewards, or the grade of what the agent left
    failure   scored with the task's `failure_reward`: the policy did it to itself, and would do it again if it were not
              scored, since an episode that is only replaced costs nothing
    replaced  not scored: the policy had no part in it; another attempt takes its place, within a budget
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rockroll.rollout.clock import Expired
from rockroll.rollout.sample import Cause, Outcome
from rockroll.sandbox import wire

Happened = Literal[
    "finished",
    "env_limit",
    "budget",
    "agent_crashed",
    "agent_persisted",
    "agent_killed",
    "agent_time",
    "agent_stalled",
    "agent_wall_clock",
    "shell_ended",
    "memory",
    "pids",
    "disk",
    "box_ended",
    "box_memory",
    "agent_mute",
    "env_raised",
    "env_stalled",
    "env_wall_clock",
    "engine_failed",
    "engine_stalled",
    "engine_wall_clock",
    "box_lost",
    "ours_failed",
    "ours_stalled",
    "ours_wall_clock",
    "cancelled",
]
Score = Literal["earned", "failure", "replaced"]


class Verdict(NamedTuple):
    """One row: how it is counted, whose doing it was, what becomes of its score."""

    outcome: Outcome
    cause: Cause | None
    score: Score


TABLE: dict[Happened, Verdict] = {
    # it came to its end
    "finished": Verdict("ok", None, "earned"),
    "agent_crashed": Verdict("ok", "agent", "earned"),
    # a budget that the policy knows of
    "env_limit": Verdict("truncated", "policy", "earned"),
    "budget": Verdict("truncated", "policy", "earned"),
    "agent_persisted": Verdict("truncated", "policy", "earned"),
    # what the policy did to itself
    "agent_killed": Verdict("truncated", "policy", "failure"),
    "agent_time": Verdict("truncated", "policy", "failure"),
    "agent_stalled": Verdict("truncated", "policy", "failure"),
    "agent_wall_clock": Verdict("truncated", "policy", "failure"),
    "shell_ended": Verdict("truncated", "policy", "failure"),
    "memory": Verdict("truncated", "policy", "failure"),
    "pids": Verdict("truncated", "policy", "failure"),
    "disk": Verdict("truncated", "policy", "failure"),
    "box_ended": Verdict("truncated", "policy", "failure"),
    "box_memory": Verdict("truncated", "policy", "failure"),
    # nothing was sampled that a score could teach
    "agent_mute": Verdict("env_error", "agent", "replaced"),
    # the task
    "env_raised": Verdict("env_error", "env", "replaced"),
    "env_stalled": Verdict("timeout", "env", "replaced"),
    "env_wall_clock": Verdict("timeout", "env", "replaced"),
    # the machinery
    "engine_failed": Verdict("infra_error", "infra", "replaced"),
    "engine_stalled": Verdict("timeout", "infra", "replaced"),
    "engine_wall_clock": Verdict("timeout", "infra", "replaced"),
    "box_lost": Verdict("infra_error", "infra", "replaced"),
    "ours_failed": Verdict("infra_error", "infra", "replaced"),
    "ours_stalled": Verdict("timeout", "infra", "replaced"),
    "ours_wall_clock": Verdict("timeout", "infra", "replaced"),
    "cancelled": Verdict("cancelled", None, "replaced"),
}

BY_ITSELF: tuple[wire.Cause, ...] = ("exited", "oom")
"""How a box dies of what runs in it. Its init ignores SIGKILL from inside, so that `killed` came from outside; the
rest (`runtime_crash`, `node_lost`, `ttl`, `owner_gone`, `deleted`) nothing in a box can bring about."""

SENT = frozenset(
    128 + number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
)
"""Exit codes of a program that somebody signalled: in a box of its own that is a command of the policy's. A crash ends
by other signals, such as SIGSEGV or SIGABRT."""


@dataclass(frozen=True, kw_only=True)
class AgentRun:
    """What is known when an agent has ended, or was ended."""

    asked: bool
    """It sent the model a request."""
    outcome: wire.Outcome | None
    """Of its command; None: it was ended because it went on asking after it had been refused."""
    exit_code: int | None = 0
    box: wire.Cause | None = None
    """How its sandbox died; None: it lives, or nobody knows."""
    box_died: bool = False
    over_budget: bool = False
    """A request was refused for want of turns or context."""
    events: Mapping[str, int] = field(default_factory=dict)
    """Limits met while it ran (sandbox/container/meter.py)."""
    disk_full: bool = False


def of_agent(run: AgentRun) -> Happened:
    """What happened to an agent that ended. Limits count only where it ended badly: a command of the policy's that
    the kernel killed, and that the agent got over, is part of its work."""
    if run.box_died or run.outcome == "lost":
        if run.asked and run.box in BY_ITSELF:
            return "box_memory" if run.box == "oom" else "box_ended"
        return "box_lost" if run.box not in BY_ITSELF else "agent_mute"
    if not run.asked and not run.over_budget:
        return "agent_mute"
    if run.over_budget:
        return "budget"
    if run.outcome is None:
        return "agent_persisted"
    if run.outcome == "timeout":
        return "agent_time"
    if run.outcome == "ok" and run.exit_code == 0:
        return "finished"
    if "oom_kills" in run.events:  # also where the kernel killed something else, and the agent broke of that
        return "memory"
    if "pids_refused" in run.events:
        return "pids"
    if run.disk_full:
        return "disk"
    if run.outcome != "ok":
        return "shell_ended"
    return "agent_killed" if run.exit_code in SENT else "agent_crashed"


def of_time(expired: Expired) -> Happened:
    """What a limit of time that was reached says: who held the episode then, or for most of it, is to blame."""
    if expired.limit == "agent":
        return "agent_time"
    by: dict[tuple[str, str], Happened] = {
        ("stall", "agent"): "agent_stalled",
        ("stall", "env"): "env_stalled",
        ("stall", "engine"): "engine_stalled",
        ("cap", "agent"): "agent_wall_clock",
        ("cap", "env"): "env_wall_clock",
        ("cap", "engine"): "engine_wall_clock",
        ("cap", "ours"): "ours_wall_clock",
    }
    return by.get((expired.limit, expired.holder), "ours_stalled")
