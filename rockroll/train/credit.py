"""Which token gets what advantage.

In: a batch, its rows, and what the reward is to lose for distance from the reference. Out: an advantage on every
trained token, and what is to say about them. Leaves the arithmetic of groups to advantages.py.

Statistics are per episode, or per turn of an episode, never per sample: branches of one episode share its advantage
and count once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from rockroll.errors import TrainError
from rockroll.train.advantages import (
    batch_advantages,
    discounted_returns,
    gigpo_advantages,
    group_advantages,
    leave_one_out,
    turn_advantages,
)
from rockroll.train.api import TrainBatch, TrainSample, Turn
from rockroll.train.batch import Row
from rockroll.train.config import TrainConfig
from rockroll.train.domains import even_out, whiten_apart
from rockroll.train.estimates import estimates, whiten


def assign(
    batch: TrainBatch, rows: Sequence[Row], config: TrainConfig, penalties: Mapping[int, float] | None = None
) -> dict[str, float]:
    """Fill `advantages` of every row; returns the advantage/* metrics.

    penalties: by episode, what is taken from its reward (KL in reward). Raises TrainError for rewards that are no
    numbers, groups of one where members are compared, and turns that do not cover what is trained.
    """
    groups, rewards = episodes_of(batch)
    if config.advantage == "gae":
        return _by_critic(batch, rows, config)
    for episode, penalty in (penalties or {}).items():
        rewards[episode] -= penalty
    try:
        tasks = {sample.episode: sample.domain for sample in batch.samples}
        of_episode = dict(zip(rewards, _of_episodes(config, groups, rewards, tasks), strict=True))
        of_turn = _of_turns(config, batch, groups, penalties or {})
    except ValueError as error:
        raise TrainError(f"step {batch.step}: {error}") from error
    episode_weight = 0.0 if config.advantage == "turn_returns" else 1.0
    for row in rows:
        row.advantages = torch.full((len(row.targets),), episode_weight * of_episode[row.episode])
        if of_turn is not None:
            row.advantages += _spread(batch.samples[row.sample], row, of_turn)
    if config.domain_normalisation:
        domains = [batch.samples[row.sample].domain for row in rows]
        evened = even_out([row.advantages for row in rows], [row.kept for row in rows], domains)
        for row, advantages in zip(rows, evened, strict=True):
            row.advantages = advantages
    return _metrics(groups, rewards, of_episode)


def _by_critic(batch: TrainBatch, rows: Sequence[Row], config: TrainConfig) -> dict[str, float]:
    """GAE of every trained token, whitened over all that count; with `domain_normalisation` over those of each task."""
    raw = [advantages for advantages, _ in estimates(batch, rows, config)]
    domains = [batch.samples[row.sample].domain if config.domain_normalisation else "" for row in rows]
    for name in dict.fromkeys(domains):
        mine = [i for i, domain in enumerate(domains) if domain == name]
        for i, advantages in zip(mine, whiten([raw[i] for i in mine], [rows[i].kept for i in mine]), strict=True):
            rows[i].advantages = advantages
    before, after = torch.cat(raw), torch.cat([row.advantages for row in rows])
    return {
        "advantage/mean": float(before.mean()),
        "advantage/abs_mean": float(before.abs().mean()),
        "advantage/max": float(after.max()),
        "advantage/min": float(after.min()),
    }


def episodes_of(batch: TrainBatch) -> tuple[dict[int, int], dict[int, float]]:
    """({episode: group}, {episode: reward}). Raises TrainError where samples of one episode disagree."""
    groups: dict[int, int] = {}
    rewards: dict[int, float] = {}
    for sample in batch.samples:
        if not math.isfinite(sample.reward):
            raise TrainError(f"a reward must be a finite number; episode {sample.episode} has {sample.reward}")
        known = (groups.setdefault(sample.episode, sample.group), rewards.setdefault(sample.episode, sample.reward))
        if known != (sample.group, sample.reward):
            raise TrainError(
                f"samples of one episode share its group and reward; episode {sample.episode} has "
                f"{known} and {(sample.group, sample.reward)}"
            )
    return groups, rewards


def _of_episodes(
    config: TrainConfig, groups: dict[int, int], rewards: dict[int, float], tasks: Mapping[int, str]
) -> list[float]:
    reward = torch.tensor(list(rewards.values()), dtype=torch.float64)
    group = torch.tensor([groups[episode] for episode in rewards], dtype=torch.int64)
    if config.advantage == "leave_one_out":
        return leave_one_out(reward, group).tolist()
    if config.advantage == "batch" and config.domain_normalisation:
        return whiten_apart(reward, [tasks[episode] for episode in rewards]).tolist()
    if config.advantage == "batch":
        return batch_advantages(reward).tolist()
    if config.advantage in ("reward", "turn_returns"):
        return reward.tolist()
    return group_advantages(reward, group, normalise=bool(config.std_normalisation)).tolist()


def _of_turns(
    config: TrainConfig, batch: TrainBatch, groups: dict[int, int], penalties: Mapping[int, float]
) -> dict[tuple[int, int], float] | None:
    """(episode, turn) -> advantage of the turn, or None for algorithms that have none."""
    if config.advantage not in ("turn_returns", "gigpo"):
        return None
    turns: dict[int, dict[int, Turn]] = {}
    for sample in batch.samples:
        of_sample = turns.setdefault(sample.episode, {})
        for turn in sample.turns:
            known = of_sample.setdefault(turn.number, turn)
            if (known.reward, known.state) != (turn.reward, turn.state):
                raise ValueError(
                    f"branches of one episode share its turns; turn {turn.number} of episode {sample.episode} has "
                    f"{(known.reward, known.state)} and {(turn.reward, turn.state)}"
                )
    keys: list[tuple[int, int]] = []
    returns: list[float] = []
    states: list[str] = []
    for episode, mine in turns.items():
        numbers = sorted(mine)
        gains = [mine[number].reward for number in numbers]
        if gains:
            gains[-1] -= penalties.get(episode, 0.0)
        keys += [(episode, number) for number in numbers]
        returns += discounted_returns(gains, config.gamma)
        states += [mine[number].state for number in numbers]
    if not keys:
        raise ValueError(f"advantage {config.advantage} needs the turns of each sample; got none")
    value = torch.tensor(returns, dtype=torch.float64)
    group = torch.tensor([groups[episode] for episode, _ in keys], dtype=torch.int64)
    normalise = bool(config.std_normalisation)
    if config.advantage == "turn_returns":
        found = turn_advantages(value, group, normalise=normalise)
    else:
        found = config.step_weight * gigpo_advantages(value, group, states, normalise=normalise)
    return dict(zip(keys, found.tolist(), strict=True))


def _spread(sample: TrainSample, row: Row, of_turn: Mapping[tuple[int, int], float]) -> torch.Tensor:
    """[n] each trained token's turn's advantage."""
    of_token = torch.full((len(sample.ids),), math.nan)
    for turn in sample.turns:
        of_token[turn.start : turn.end] = of_turn[sample.episode, turn.number]
    found = of_token[row.positions + 1]
    if bool(found.isnan().any()):
        at = int(row.positions[found.isnan()][0]) + 1
        raise TrainError(f"turns must cover every trained token; token {at} of sample {row.sample} is in none")
    return found


def _metrics(
    groups: Mapping[int, int], rewards: Mapping[int, float], of_episode: Mapping[int, float]
) -> dict[str, float]:
    advantages = list(of_episode.values())
    seen: dict[int, set[float]] = {}
    for episode, reward in rewards.items():
        seen.setdefault(groups[episode], set()).add(reward)
    return {
        "advantage/mean": sum(advantages) / len(advantages),
        "advantage/abs_mean": sum(map(abs, advantages)) / len(advantages),
        "advantage/max": max(advantages),
        "advantage/min": min(advantages),
        "advantage/zero_groups": sum(len(values) == 1 for values in seen.values()) / len(seen),
    }
