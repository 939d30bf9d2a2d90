"""A batch's rewards and values in, advantages and returns of its tokens out.

In: a batch whose samples carry the critic's values, and its rows. Out: for each row GAE's advantages and returns, on
its trained tokens. The policy and the critic compute them alike, each for itself. Leaves the recursion to
advantages.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rockroll.errors import TrainError
from rockroll.train.advantages import gae
from rockroll.train.api import TrainBatch, TrainSample
from rockroll.train.batch import Row
from rockroll.train.config import TrainConfig


def estimates(batch: TrainBatch, rows: Sequence[Row], config: TrainConfig) -> list[tuple[Tensor, Tensor]]:
    """([n] advantages, [n] returns) of each row, float32; before any whitening.

    Raises TrainError for a sample without the values of its trained tokens, and for an episode with two rows.
    """
    episodes = [row.episode for row in rows]
    if len(set(episodes)) < len(episodes):
        twice = next(e for e in episodes if episodes.count(e) > 1)
        raise TrainError(f"step {batch.step}: GAE takes unbranched episodes only; episode {twice} has two branches")
    found = []
    for row in rows:
        sample = batch.samples[row.sample]
        if len(sample.values) != len(row.targets):
            raise TrainError(
                f"step {batch.step}: GAE needs the critic's value of every trained token; sample {row.sample} has "
                f"{len(row.targets)} of them and {len(sample.values)} values"
            )
        # Of the trained tokens alone, so that every one is a step: the mask has done its work.
        everything = torch.ones(len(row.targets), dtype=torch.bool)
        rewards = torch.tensor(token_rewards(sample), dtype=torch.float64)
        values = torch.tensor(sample.values, dtype=torch.float64)
        advantages, returns = gae(rewards, values, everything, gamma=config.gamma, lam=config.gae_lambda)
        found.append((advantages.float(), returns.float()))
    return found


def token_rewards(sample: TrainSample) -> list[float]:
    """What each trained token of a sample earned: [n].

    A turn's reward stands on its last trained token. One of a turn that has none (it was incomplete, say) goes to the
    trained token before it, which led there; before the first trained token it is nobody's. Without turns the episode's
    reward stands on the last trained token.
    """
    places = [i for i, trained in enumerate(sample.mask) if trained]
    rewards = [0.0] * len(places)
    if not sample.turns:
        rewards[-1] = sample.reward
        return rewards
    for turn in sample.turns:
        before = sum(place < turn.end for place in places)
        if before:
            rewards[before - 1] += turn.reward
    return rewards


def whiten(rows: Sequence[Tensor], kept: Sequence[Tensor | None], *, std_eps: float = 1e-8) -> list[Tensor]:
    """(x - mean) / (std + std_eps) over all tokens that count, of all rows (PPO's usual normalisation,
    here over the whole batch: arXiv 2006.05990 studies it).

    rows: [n] each. kept: [n] bool each, None: all count. std is the population's. What does not count is shifted and
    scaled with the rest, and weighs nothing. All 0 where the values are all equal, one token included.
    """
    counted = torch.cat([x if k is None else x[k] for x, k in zip(rows, kept, strict=True)]).double()
    if not len(counted) or bool((counted == counted[0]).all()):
        return [torch.zeros_like(x) for x in rows]
    mean, std = counted.mean(), counted.std(unbiased=False)
    return [((x.double() - mean) / (std + std_eps)).float() for x in rows]


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one that is no better than a constant.

    values, returns: [n]. 0 where the returns are all equal: there is nothing to explain.
    """
    variance = float(returns.double().var(unbiased=False))
    if not variance:
        return 0.0
    return 1 - float((returns.double() - values.double()).var(unbiased=False)) / variance
