"""Advantages of several tasks: whitened and evened out task by task."""

from __future__ import annotations

import pytest
import torch

from rockroll.train.api import TrainBatch, TrainSample
from rockroll.train.batch import Row, make_row
from rockroll.train.config import TrainConfig
from rockroll.train.credit import assign
from rockroll.train.domains import even_out, whiten_apart


def test_whitening_apart_compares_episodes_of_one_task_alone() -> None:
    found = whiten_apart(torch.tensor([0.0, 10.0, 2.0, 20.0]), ["a", "b", "a", "b"])
    assert found.tolist() == pytest.approx([-1, -1, 1, 1])


def test_a_task_whose_rewards_are_all_equal_teaches_nothing() -> None:
    assert whiten_apart(torch.tensor([3.0, 3.0, 1.0, 2.0]), ["a", "a", "b", "b"]).tolist() == pytest.approx(
        [0, 0, -1, 1]
    )


def test_evened_out_each_task_has_the_size_of_all_and_keeps_its_signs() -> None:
    rows = [torch.tensor([10.0, -10.0]), torch.tensor([1.0]), torch.tensor([]), torch.tensor([-1.0]), torch.zeros(3)]
    found = even_out(rows, [None] * 5, ["big", "small", "small", "small", "none"])
    whole = ((100 + 100 + 1 + 1) / 4) ** 0.5
    assert found[0].tolist() == pytest.approx([whole, -whole])
    assert found[1].tolist() == pytest.approx([whole]) and found[3].tolist() == pytest.approx([-whole])
    assert len(found[2]) == 0 and found[4].tolist() == [0, 0, 0]


def test_tokens_that_are_filtered_out_do_not_count_for_the_size() -> None:
    rows = [torch.tensor([3.0, -3.0, 50.0]), torch.tensor([1.0, 1.0])]
    found = even_out(rows, [torch.tensor([True, True, False]), None], ["big", "small"])
    whole = ((9 + 9 + 1 + 1) / 4) ** 0.5
    assert found[0].tolist() == pytest.approx([whole, -whole, 50 * whole / 3])
    assert found[1].tolist() == pytest.approx([whole, whole])


def test_a_task_of_which_nothing_counts_keeps_what_it_has() -> None:
    rows = [torch.tensor([2.0]), torch.tensor([1.0])]
    assert [x.tolist() for x in even_out(rows, [torch.tensor([False]), None], ["out", "in"])] == [[2.0], [1.0]]
    assert even_out([], [], []) == []


def sample(episode: int, group: int, reward: float, domain: str) -> TrainSample:
    return TrainSample(
        ids=[1, 2, 3], mask=[False, True, True], logprobs=[0, -1, -1], versions=[-1, 0, 0],
        episode=episode, group=group, reward=reward, domain=domain, values=[0.0, 0.0],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "apart", "wanted"),
    [
        ("reinforce_pp", False, [-1.0887, -0.8165, 0.5443, 1.3608]),
        ("reinforce_pp", True, [-1, 1, -1, 1]),
        ("dr_grpo", False, [-0.5, 0.5, -1.5, 1.5]),
        ("dr_grpo", True, [-1.118, 1.118, -1.118, 1.118]),
        ("grpo", False, [-1, 1, -1, 1]),
        ("grpo", True, [-1, 1, -1, 1]),
        ("ppo", False, [-1.0887, -0.8165, 0.5443, 1.3608]),
        ("ppo", True, [-1, 1, -1, 1]),
    ],
)
def test_what_algorithms_do_with_tasks_of_different_rewards(algorithm, apart: bool, wanted: list[float]) -> None:
    rewards = [0.0, 1.0, 6.0, 9.0]
    samples = [sample(i, i // 2, reward, "ab"[i // 2]) for i, reward in enumerate(rewards)]
    batch = TrainBatch(step=1, samples=samples)
    rows: list[Row] = []
    for number, each in enumerate(samples):
        row = make_row(each, number=number, episode=each.episode, vocabulary=10, context=20)
        assert row is not None
        rows.append(row)
    settings = TrainConfig(algorithm=algorithm, aggregation_length=8, domain_normalisation=apart, gae_lambda=1.0)
    assign(batch, rows, settings)
    assert [float(row.advantages[0]) for row in rows] == pytest.approx(wanted, abs=2e-3)
