"""A task's own words, asked safely: its situation, its grade, and what a limit of time says of an episode.

In: what a task returns or raises. Out: values that were checked, or EnvError with the rule that it broke. Leaves when
they are asked to episode.py and team_episode.py.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rockroll.env.api import SandboxTask, Situation, Split
from rockroll.errors import EnvError, FileError, PeerLost, SandboxError, SandboxLost
from rockroll.rollout.clock import TimeUp


def situation_of(name: str, task: SandboxTask, seed: int, split: Split) -> Situation:
    """EnvError for whatever it raises."""
    try:
        return task.situation(seed, split)
    except EnvError:
        raise
    except Exception as error:
        raise EnvError(f"{name}: situation raised {type(error).__name__}: {error}") from error


async def graded(name: str, grade: Callable[[], Awaitable[Any]]) -> Any:
    """What `grade` returns; 0.0 for a file that is not there, EnvError for what else it raises of its own."""
    try:
        return await grade()
    except FileError:
        return 0.0
    except PeerLost as error:
        raise SandboxLost(str(error)) from error
    except (SandboxError, EnvError):
        raise
    except Exception as error:
        raise EnvError(f"{name}: grade raised {type(error).__name__}: {error}") from error


def number(name: str, value: Any) -> float:
    """A reward, checked."""
    try:
        reward = float(value)
    except (TypeError, ValueError) as error:
        if isinstance(value, Mapping):
            raise EnvError(
                f"{name}: one agent alone earns a number; grade returned rewards by agent: {', '.join(map(str, value))}"
            ) from None
        raise EnvError(f"{name}: grade raised {type(error).__name__}: {error}") from error
    if not math.isfinite(reward):
        raise EnvError(f"{name}: a reward is a finite number; grade returned {value!r}")
    return reward


def time_up(up: TimeUp, spent: Mapping[Any, float]) -> str:
    """What a limit that was reached says, in a sentence. spent: seconds by holder."""
    limit, holder, seconds = up.expired
    if limit == "agent":
        return f"the agent's time limit of {seconds:g} s, without what it waited for the model"
    whose = {"ours": "rockroll", "env": "the environment"}.get(holder, f"the {holder}")
    if limit == "stall":
        return f"rollout stall_timeout: nothing happened for {seconds:g} s, and {whose} held the episode"
    return f"rollout episode_timeout of {seconds:g} s, {spent.get(holder, 0.0):.1f} of them in {whose}"
