"""Groups as the trainer takes them: every branch a sample, every answer with what it earned."""

from __future__ import annotations

from rockroll.controller.loop import to_batch
from rockroll.rollout.sample import Episode, Group, Sample, SampledTurn


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
