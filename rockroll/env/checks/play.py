"""An Env played as a check plays it: by actions that a seed decides, each call with a time limit.

In: an Env of anybody's, a seed, at most how many steps. Out: what was seen. Leaves what should have been seen to
env_rules.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rockroll.env.api import Step, read_reset, read_step
from rockroll.env.checks.calls import Broken, Calls

GUESSES = ("up", "down", "left", "right", "0", "1", "2", "yes", "no", "a", "hello")
"""Actions, where the task does not tell its own by `sample_random_action`."""


@dataclass(frozen=True)
class Played:
    """One episode as it was seen."""

    first: str
    steps: tuple[Step, ...]

    @property
    def over(self) -> bool:
        return bool(self.steps) and self.steps[-1].over


class Player:
    """actions: to draw from, in place of the task's own. steps: of an episode, at most."""

    def __init__(self, calls: Calls, actions: Sequence[str], steps: int) -> None:
        self._calls, self._given, self._steps = calls, tuple(actions), steps

    def play(self, env: Any, seed: int, most: int = 100) -> Played:
        """An episode with actions that the seed decides, as far as they are ours to draw."""
        draw = random.Random(f"play {seed}")
        first, _ = read_reset(self._calls.of(env.reset, seed=seed))
        steps: list[Step] = []
        while len(steps) < min(most, self._steps) and not (steps and steps[-1].over):
            steps.append(read_step(self._calls.of(env.step, self.action(env, draw))))
        return Played(first, tuple(steps))

    def action(self, env: Any, draw: random.Random) -> str:
        """An action; the task's own sampler draws from the module's generator, which is set for it and set back."""
        sample = getattr(env, "sample_random_action", None)
        if self._given or not callable(sample):
            return draw.choice(self._given or GUESSES)
        before = random.getstate()
        random.seed(draw.random())
        try:
            return self._calls.of(sample)
        except Broken:  # a base class of many libraries has one that only raises
            return draw.choice(GUESSES)
        finally:
            random.setstate(before)


def difference(one: Played, other: Played) -> str:
    """What two plays of one episode differ in; empty where they are equal."""
    if one.first != other.first:
        return f"the first observations are {_short(one.first)} and {_short(other.first)}"
    for place, (a, b) in enumerate(zip(one.steps, other.steps, strict=False), 1):
        if a.reward != b.reward:
            return f"step {place} earned {a.reward:g} and {b.reward:g}"
        if a.observation != b.observation:
            return f"step {place} showed {_short(a.observation)} and {_short(b.observation)}"
        if (a.terminated, a.truncated) != (b.terminated, b.truncated):
            return f"step {place} ended one of them"
    return "" if len(one.steps) == len(other.steps) else f"they have {len(one.steps)} and {len(other.steps)} steps"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:40] + "…" + text[-19:])
