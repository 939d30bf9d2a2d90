"""Groups as the trainer takes them: every branch a sample, every answer with what it earned."""

from __future__ import annotations

from rockroll.controller.batch import to_batch
from rockroll.rollout.sample import Episode, Group, Sample, SampledTurn
from rockroll.train.batch import make_row
from rockroll.train.config import TrainConfig
from rockroll.train.credit import assign


def episode(index: int, reward: float, turn_rewards: list[float], *numbers: list[int]) -> Episode:
    samples = [
        Sample(
            [1, 2, 3], [False, True, True], [0.0, -1.0, -1.0], [-1, 0, 0], [SampledTurn(n, n, n + 1, "s") for n in of]
        )
        for of in numbers
    ]
    return Episode(f"e{index}", "t", 7, 4, index, "ok", None, reward, samples, 2, 0.1, turn_rewards=turn_rewards)


def test_branches_share_their_episode_and_answers_have_the_environments_rewards() -> None:
    group = Group(4, "t", 7, [episode(0, 1.5, [0.5, 1.0], [0, 1]), episode(1, 2.0, [], [0, 1], [0, 2])], 0)
    batch = to_batch(3, [group], 0.7)
    assert (batch.step, batch.temperature) == (3, 0.7)
    assert [(s.episode, s.group, s.reward) for s in batch.samples] == [(0, 0, 1.5), (1, 0, 2.0), (1, 0, 2.0)]
    assert [[t.reward for t in s.turns] for s in batch.samples] == [[0.5, 1.0], [0.0, 0.0], [0.0, 2.0]]


def test_an_episode_without_an_answer_counts_in_its_group_and_trains_nothing() -> None:
    """Its agent hung before the first call, say: it is scored, and the others are compared with it."""
    batch = to_batch(1, [Group(4, "t", 7, [episode(0, 1.0, [], [0]), episode(1, 0.0, [])], 0)], 1.0)
    assert [(s.episode, s.group, s.reward, s.ids) for s in batch.samples] == [(0, 0, 1.0, [1, 2, 3]), (1, 0, 0.0, [])]
    made = [
        make_row(s, logprobs=s.logprobs or None, number=i, vocabulary=9, context=9) for i, s in enumerate(batch.samples)
    ]
    rows = [row for row in made if row is not None]
    assert len(rows) == 1
    assign(batch, rows, TrainConfig(std_normalisation=False))
    assert rows[0].advantages.tolist() == [0.5, 0.5]
