"""Batches like those of a long run: multi-turn episodes with a heavy tail, in groups, with rewards that differ.

In: how many, and how long at most. Out: lengths, and a TrainBatch of random tokens with those lengths. Pure: the same
seed, the same batch. Leaves measuring to train.py.
"""

from __future__ import annotations

import math
import random

from rockroll.train.api import TrainBatch, TrainSample

GROUP = 8


def heavy_tailed_lengths(episodes: int, *, context: int, answer: int, seed: int) -> list[int]:
    """Tokens of each episode, cut at `context`: see `heavy_tailed_turns`."""
    return [sum(map(sum, turns)) for turns in heavy_tailed_turns(episodes, context=context, answer=answer, seed=seed)]


def heavy_tailed_turns(episodes: int, *, context: int, answer: int, seed: int) -> list[list[tuple[int, int]]]:
    """(tokens read, tokens sampled) of every turn of every episode.

    Turns: 1 to 16, exponential with mean 4. Sampled: log-normal about `answer` (σ 0.9: one in twenty is over 4 times
    as long). Read: a prompt of one to four answers' length first, then tool results, log-normal about half an answer.
    """
    rng = random.Random(f"lengths/{seed}")
    return [_turns(rng, context, answer) for _ in range(episodes)]


def _turns(rng: random.Random, context: int, answer: int) -> list[tuple[int, int]]:
    turns: list[tuple[int, int]] = []
    left = context
    for turn in range(1 + min(15, int(rng.expovariate(1 / 3)))):
        read = rng.randint(answer, 4 * answer) if turn == 0 else int(rng.lognormvariate(math.log(answer / 2), 1.0))
        sampled = 1 + int(rng.lognormvariate(math.log(answer), 0.9))
        read = max(1, min(read, left - 1))
        sampled = min(sampled, left - read)
        if sampled < 1:
            break
        turns.append((read, sampled))
        left -= read + sampled
        if left < 2:
            break
    return turns


def heavy_tailed_batch(
    step: int, episodes: int, *, context: int, answer: int, vocabulary: int, seed: int
) -> TrainBatch:
    """Groups of 8 episodes of random tokens, each a sample; log-probs as of a model that has learnt nothing yet."""
    rng = random.Random(f"batch/{seed}/{step}")
    samples = []
    for episode, turns in enumerate(heavy_tailed_turns(episodes, context=context, answer=answer, seed=seed + step)):
        mask = [trained for read, sampled in turns for trained in [False] * read + [True] * sampled]
        samples.append(
            TrainSample(
                ids=[rng.randrange(vocabulary) for _ in mask],
                mask=mask,
                logprobs=[-math.log(vocabulary) if trained else 0.0 for trained in mask],
                versions=[step if trained else -1 for trained in mask],
                episode=episode,
                group=episode // GROUP,
                reward=float(episode % GROUP == 0 or rng.random() < 0.3),
            )
        )
    return TrainBatch(step=step, samples=samples)
