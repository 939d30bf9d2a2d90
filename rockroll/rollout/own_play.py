"""An episode that the environment plays itself: by its reference solver, at random, or by a mixture of both.

In: an EnvTask, a seed and a split as a rollout would give them, the share of random moves. Out: the conversation as a
rollout's episode would have had it, and its reward. Leaves models to episode.py, and what is done with the conversation
(demonstrations, a baseline) to others.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from rockroll.env.api import Split
from rockroll.env.own_random import OwnRandom
from rockroll.rollout.domain import HeldOut
from rockroll.rollout.sample import PASS, Episode
from rockroll.rollout.seed import derive
from rockroll.rollout.tasks import EnvTask, Policy


@dataclass(frozen=True)
class Played:
    """messages: up to the last answer; what the environment says after it nobody answers."""

    messages: list[dict[str, Any]]
    reward: float

    @property
    def passed(self) -> bool:
        return self.reward >= PASS


async def episode(task: EnvTask, at: HeldOut, number: int, by: Policy, *, draws: int) -> Episode:
    """A held-out situation played by the environment's own policy, as the record of an episode without a model."""
    begun = time.monotonic()
    noise = 1.0 if by == "random" else 0.0
    played = await play(task, at.seed, "eval", noise=noise, draws=derive("own policy", draws, at.task, at.seed))
    return Episode(
        id=f"{by}-{number}",
        task=at.task,
        seed=at.seed,
        group=number,
        index=0,
        outcome="ok",
        cause=None,
        reward=played.reward,
        samples=[],
        turns=sum(message["role"] == "assistant" for message in played.messages),
        duration_s=time.monotonic() - begun,
        level=at.level,
    )


async def play(task: EnvTask, seed: int, split: Split, *, noise: float, draws: int) -> Played:
    """One episode to its end, the task's max_turns, or where the solver knows nothing more.

    noise: the share of answers that are drawn at random, 0 to 1. draws: seed of those; equal arguments, equal episodes.
    Raises EnvError where the environment fails, UsageError where it has no policy of that kind.
    """
    own, drawn = OwnRandom(), random.Random(draws)
    with own.here():
        random.seed(draws)  # environments draw their random moves from Python's own generator
    game = task.game(split)
    try:
        shown = await game.reset(seed, split)
        messages: list[dict[str, Any]] = []
        reward = 0.0
        for _ in range(task.config.max_turns):
            with own.here():
                answer = game.own_answer("random" if drawn.random() < noise else "expert")
            if answer is None:
                break
            messages += [*shown, {"role": "assistant", "content": answer}]
            shown, earned, terminated, truncated = await game.say(answer)
            reward += earned
            if terminated or truncated:
                break
        return Played(messages, reward)
    finally:
        game.close()
