"""Who is compared with whom, where several agents work in an episode, and numbers of each of them.

In: groups. Out: the parts that the trainer takes as episodes of their own, one an agent; a metrics row's entries. Pure.
Leaves the arithmetic of advantages to train/.

An agent is compared with itself alone: its reward in one episode of a group against its rewards in the others, under
the recipe's algorithm. Roles earn differently, and a baseline over all of them would say so at every step in place of
who did well (arXiv 2602.08847; grouped by agent also in arXiv 2510.11062).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rockroll.rollout.sample import Episode, Group, Sample
from rockroll.rollout.team import broke


@dataclass(frozen=True)
class Part:
    """What one agent said in one episode, and earned for it."""

    agent: str
    """"" where it is the only one."""
    samples: list[Sample]
    reward: float
    turn_rewards: list[float]
    """What the environment gave for each answer; empty where there is only the reward at the end."""


def compared(group: Group) -> set[str]:
    """Agents whose samples are trained: one that spoke in a single episode of several has nothing to be compared with
    there, as a group of one."""
    if not any(episode.agents for episode in group.episodes):
        return {""}
    spoke = Counter(name for episode in group.episodes for name in {sample.agent for sample in episode.samples})
    return {name for name, times in spoke.items() if times > 1 or len(group.episodes) == 1}


def parts(group: Group) -> Iterator[Part]:
    """In the order of episodes, agents and branches, as the samples stand in the records."""
    kept = compared(group)
    for episode in group.episodes:
        names = [each.name for each in episode.agents] or [""]
        for name in names:
            samples = [sample for sample in episode.samples if sample.agent == name]
            if name in kept and (samples or not episode.agents):
                yield Part(name, samples, _earned(episode, name), episode.turn_rewards)


def _earned(episode: Episode, agent: str) -> float:
    reward = episode.earned_by(agent)
    assert reward is not None, "a group holds valid episodes only"
    return reward


def batch_row(groups: Sequence[Group]) -> dict[str, float]:
    """agents/reward_mean/NAME, agents/turns_mean/NAME, agents/tokens/NAME, agents/broke/NAME (share of its episodes) of
    one training batch, and agents/not_compared, sampled tokens left out. Empty where no episode has several agents."""
    row: dict[str, float] = {}
    episodes = [episode for group in groups for episode in group.episodes if episode.agents]
    for name in dict.fromkeys(each.name for episode in episodes for each in episode.agents):
        mine = [each for episode in episodes for each in episode.agents if each.name == name]
        row[f"agents/reward_mean/{name}"] = sum(each.reward or 0.0 for each in mine) / len(mine)
        row[f"agents/turns_mean/{name}"] = sum(each.turns for each in mine) / len(mine)
        row[f"agents/tokens/{name}"] = sum(
            sample.sampled for episode in episodes for sample in episode.samples if sample.agent == name
        )
        row[f"agents/broke/{name}"] = sum(broke(each.happened) for each in mine) / len(mine)
    if episodes:
        row["agents/not_compared"] = sum(
            sample.sampled
            for group in groups
            for kept in [compared(group)]
            for episode in group.episodes
            for sample in episode.samples
            if sample.agent not in kept
        )
    return row
