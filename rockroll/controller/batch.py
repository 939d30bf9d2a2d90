"""Groups of episodes as the trainer takes them.

In: complete groups. Out: one TrainBatch. Pure. Leaves which groups make a batch to rollout/, advantages to train/.
"""

from __future__ import annotations

from rockroll.controller import agents
from rockroll.rollout.sample import Group, Sample
from rockroll.train.api import TrainBatch, TrainSample, Turn

_NOTHING = [Sample([], [], [], [])]
"""Of an episode that is scored and has no answer (its agent hung before the first one): nothing of it is trained, and
its reward counts in its group as any other."""


def to_batch(step: int, groups: list[Group], temperature: float, spans: int = 0) -> TrainBatch:
    """The groups as the trainer takes them: every branch of an episode is a sample with that episode's reward; of
    several agents each is an episode of its own, in a group of its own (agents.py).

    spans: how many spans of equal advantages of each sample the trainer is to tell.
    """
    samples: list[TrainSample] = []
    index: dict[tuple[int, str], int] = {}
    number = 0
    for at, group in enumerate(groups):
        for part in agents.parts(group):
            gains = _turn_rewards(part)
            for sample in part.samples or _NOTHING:
                samples.append(
                    TrainSample(
                        ids=sample.ids,
                        mask=sample.mask,
                        logprobs=sample.logprobs,
                        versions=sample.versions,
                        episode=number,
                        group=index.setdefault((at, part.agent), len(index)),
                        reward=part.reward,
                        domain=group.task,
                        turns=[
                            Turn(
                                number=t.number,
                                start=t.start,
                                end=t.end,
                                state=t.state,
                                reward=gains.get(t.number, 0.0),
                            )
                            for t in sample.turns
                        ],
                    )
                )
            number += 1
    return TrainBatch(step=step, samples=samples, temperature=temperature, spans=spans)


def _turn_rewards(part: agents.Part) -> dict[int, float]:
    """What each answer earned, by its number: what the environment gave for it, or the whole at the last one."""
    if part.turn_rewards:
        return dict(enumerate(part.turn_rewards))
    last = max((turn.number for sample in part.samples for turn in sample.turns), default=-1)
    return {last: part.reward}
