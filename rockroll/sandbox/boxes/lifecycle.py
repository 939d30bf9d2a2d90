"""The states of a sandbox and the causes of its death: two tables, and nothing that acts.

In: a state and an event; what is known of a death. Out: the next state; one cause, and the words for it. Leaves
finding the facts to life.py and hull.py, and how a call ended to wire.Outcome, which is a third notion: a call can be
"killed" in a box that lives, and a box can die of "oom" while no call is under way.

    starting ──► running ◄──► paused          `stopped`: asked for.  `exited`: init died by itself or was killed.
        │           ├──────── stop ──► stopped ──┐
        └── died ───┴──────── died ──► exited ───┴── start ──► starting        removed: from anywhere ──► gone
"""

from __future__ import annotations

import time
from typing import Literal, NamedTuple, get_args

from rockroll.errors import SandboxError
from rockroll.sandbox.wire import Cause, State

Event = Literal["started", "stop", "start", "died", "pause", "unpause", "removed"]

TRANSITIONS: dict[tuple[State, Event], State] = {
    ("starting", "started"): "running",
    ("starting", "died"): "exited",
    ("running", "pause"): "paused",
    ("paused", "unpause"): "running",
    ("running", "stop"): "stopped",
    ("paused", "stop"): "stopped",
    ("running", "died"): "exited",
    ("paused", "died"): "exited",
    ("stopped", "died"): "stopped",
    ("exited", "died"): "exited",
    ("stopped", "stop"): "stopped",
    ("exited", "stop"): "stopped",
    ("stopped", "start"): "starting",
    ("exited", "start"): "starting",
    ("gone", "died"): "gone",
    **{(state, "removed"): "gone" for state in get_args(State)},
}

WORDS: dict[Cause, str] = {
    "oom": "the kernel killed it at its memory limit",
    "killed": "its init was killed by a signal",
    "runtime_crash": "the container runtime lost it",
    "node_lost": "the node that held it died",
    "ttl": "its time to live was over",
    "owner_gone": "the process that owned it ended",
    "exited": "its init ended by itself",
    "deleted": "it was deleted",
}


def after(state: State, event: Event) -> State:
    """The next state. Raises SandboxError for an event that the state does not allow."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise SandboxError(f"a sandbox that is {state} cannot {event}") from None


class Facts(NamedTuple):
    """What is known of a death when it is found."""

    asked: Cause | None = None
    """Somebody decided it: the TTL, a deletion, the end of the owner."""
    code: int | None = None
    """Init's exit code as a shell gives it, 128 + signal for a signal; None where nobody could wait for it."""
    oom: bool = False
    """The kernel has killed for memory in this box since anybody last looked."""
    watched: bool = True
    """A node saw the death; else it was found by the next one."""


def cause_of(facts: Facts) -> Cause:
    """One cause for one death; a decision of ours comes before what the kernel did to carry it out."""
    if facts.asked is not None:
        return facts.asked
    if facts.code is None:
        return "runtime_crash" if facts.watched else "node_lost"
    if facts.code == 128 + 9 and facts.oom:
        return "oom"
    return "killed" if facts.code > 128 else "exited"


def story(cause: Cause | None, ended: float | None) -> str:
    """ "2026-11-23 10:15:03 UTC: its time to live was over", as far as it is known."""
    words = WORDS[cause] if cause else "the cause is not known"
    return words if ended is None else f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(ended))}: {words}"
