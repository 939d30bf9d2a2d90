"""What an environment pays a solver, and what it pays chance: `rockroll env scores NAME`.

In: an environment that has `expert_action()`, at each of its `levels`. Out: the mean reward of an episode by that
solver and by a random policy, over situations of evaluation, and how many of these occur in training too. Leaves the
contract of an Env to check.py, and the same policies on a recipe's held-out tasks to the controller.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from rockroll.env.api import read_reset, read_step
from rockroll.env.registry import find, make
from rockroll.errors import UsageError


class Score(msgspec.Struct, frozen=True):
    """One level, over held-out episodes."""

    task: str
    level: str
    """As the class names it; "" where it names none."""
    options: dict[str, Any]
    random: float
    """Mean reward of an episode, each answer being `sample_random_action()`."""
    reference: float
    """The same, each answer being `expert_action()`; a random one where that knows none."""
    episodes: int
    shared: int | None
    """How many of their first observations are among as many of training; None: the class knows no splits."""


def scores(
    name: str, options: Mapping[str, Any] | None = None, *, episodes: int = 200, turns: int = 1000
) -> list[Score]:
    """Of each of its levels; of the options alone, where they are given or the class names no levels.

    turns: an episode is over then. Raises UsageError where it has no solver or no random policy.
    """
    cls = find(name)
    missing = [each for each in ("expert_action", "sample_random_action") if not callable(getattr(cls, each, None))]
    if missing or not callable(getattr(cls, "step", None)):
        raise UsageError(
            f"{name} has no {' and no '.join(missing) or 'step'}: scores are of an Env that has expert_action(), "
            "what a solver answers now, and sample_random_action()"
        )
    levels: Mapping[str, Mapping[str, Any]] = getattr(cls, "levels", {})
    if options or not levels:
        levels = {"": options or {}}
    splits = "split" in inspect.signature(cls).parameters
    return [_score(name, level, dict(given), episodes, turns, splits) for level, given in levels.items()]


def _score(name: str, level: str, options: dict[str, Any], episodes: int, turns: int, splits: bool) -> Score:
    env = make(name, **options, **({"split": "eval"} if splits else {}))
    seeds = [2 * number + 1 for number in range(episodes)]  # evaluation's are odd
    before = random.getstate()
    random.seed(1)  # the policy's draws, so that a score repeats; an Env draws from its own
    try:
        chance = _mean(env, env.sample_random_action, seeds, turns)
    finally:
        random.setstate(before)
    known = _mean(env, lambda: _known(env), seeds, turns)
    shared = None
    if splits:
        seen = {read_reset(env.reset(seed=seed))[0] for seed in seeds}
        training = make(name, **options, split="train")
        shared = len(seen & {read_reset(training.reset(seed=seed - 1))[0] for seed in seeds})
    return Score(name, level, options, round(chance, 4), round(known, 4), episodes, shared)


def _known(env: Any) -> str:
    """A tool call alone is an answer, whose text is empty."""
    action = env.expert_action()
    return env.sample_random_action() if action is None else action


def _mean(env: Any, policy: Callable[[], str], seeds: Sequence[int], turns: int) -> float:
    total = 0.0
    for seed in seeds:
        env.reset(seed=seed)
        for _ in range(turns):
            step = read_step(env.step(policy()))
            total += step.reward
            if step.over:
                break
    return total / len(seeds)
