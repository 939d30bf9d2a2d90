"""Packing: every trained token once, bounded micro-batches, the same number on every rank."""

import itertools
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rockroll.bench.train_load import heavy_tailed_lengths
from rockroll.errors import TrainError
from rockroll.train.batch import MICRO_BATCH_PRICE, Row, collate, deal, make_row, pack, padding_fraction, plan

Lengths = st.lists(st.integers(1, 50), min_size=1, max_size=40)


def row(ids: list[int], mask: list[int], logprobs: list[float] | None = None, **options: int) -> Row | None:
    sample = SimpleNamespace(ids=ids, mask=[bool(m) for m in mask])
    return make_row(sample, logprobs=logprobs, advantage=1.5, **({"vocabulary": 100, "context": 64} | options))


def test_a_row_ends_at_its_last_trained_token_and_keeps_holes():
    made = row([10, 11, 12, 13, 14, 15], [0, 1, 0, 1, 0, 0], [0, -0.1, 0, -0.3, 0, 0])
    assert made is not None
    assert made.inputs.tolist() == [10, 11, 12]
    assert made.positions.tolist() == [0, 2]
    assert made.targets.tolist() == [11, 13]
    assert made.behaviour.tolist() == pytest.approx([-0.1, -0.3])


def test_a_sample_without_a_sampled_token_makes_no_row():
    assert row([1, 2, 3], [0, 0, 0]) is None


@pytest.mark.parametrize(
    ("ids", "mask", "logprobs", "says"),
    [
        ([1, 2], [1, 1], None, "first token cannot be trained"),
        ([1, 2], [0, 1, 1], None, "2 ids, 3 mask"),
        ([1, 2], [0, 1], [0.0], "2 ids, 2 mask, 1 logprobs"),
        ([1, 100], [0, 1], None, "0 to 99; got 100"),
        ([1, -3], [0, 1], None, "0 to 99; got -3"),
        ([1] * 65, [0] * 64 + [1], None, "context of 64 tokens; got 65"),
        ([1, 2], [0, 1], [0.0, float("nan")], "must be finite"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_value(ids: list[int], mask: list[int], logprobs, says: str):
    with pytest.raises(TrainError, match=says):
        row(ids, mask, logprobs)


@given(Lengths, st.integers(1, 4), st.integers(1, 120))
def test_every_row_is_planned_once_and_ranks_have_equally_many(lengths: list[int], ranks: int, budget: int):
    planned = plan(lengths, ranks, budget)
    assert sorted(i for packs in planned for rows in packs for i in rows) == list(range(len(lengths)))
    assert len({len(packs) for packs in planned}) == 1 and len(planned) == ranks


@given(Lengths, st.integers(1, 120))
def test_a_micro_batch_keeps_its_budget_unless_one_row_is_longer(lengths: list[int], budget: int):
    for rows in pack(lengths, range(len(lengths)), budget):
        assert len(rows) == 1 or len(rows) * max(lengths[i] for i in rows) <= budget


@given(Lengths, st.integers(1, 4))
def test_no_rank_has_a_whole_row_more_work_than_another(lengths: list[int], ranks: int):
    loads = [sum(lengths[i] for rows in packs for i in rows) for packs in plan(lengths, ranks, 64)]
    assert max(loads) - min(loads) <= max(lengths)


def cheapest(lengths: list[int], budget: int) -> int:
    """The least cost of all ways to share rows, by trying every set of them: the longest row's companions first."""
    if not lengths:
        return 0
    longest, others = max(lengths), sorted(lengths)[:-1]
    found = []
    for chosen in itertools.product([False, True], repeat=len(others)):
        rows = 1 + sum(chosen)
        if rows == 1 or rows * longest <= budget:
            left = [n for n, c in zip(others, chosen, strict=True) if not c]
            found.append(rows * longest + MICRO_BATCH_PRICE + cheapest(left, budget))
    return min(found)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_no_other_way_to_share_the_rows_is_cheaper(lengths: list[int], budget: int):
    packs = pack(lengths, range(len(lengths)), budget)
    cost = sum(len(rows) * max(lengths[i] for i in rows) + MICRO_BATCH_PRICE for rows in packs)
    assert cost == cheapest(lengths, budget)


@pytest.mark.parametrize(("episodes", "context", "answer"), [(128, 2048, 60), (128, 8192, 250), (512, 2048, 60)])
@pytest.mark.parametrize("budget", [4096, 16384])
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_heavy_tail_of_episodes_wastes_at_most_one_token_in_twenty(
    episodes: int, context: int, answer: int, budget: int, ranks: int
):
    lengths = heavy_tailed_lengths(episodes, context=context, answer=answer, seed=1)
    assert padding_fraction(lengths, plan(lengths, ranks, budget)) <= 0.05


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_short_episodes_dealt_to_many_ranks_waste_no_more(ranks: int, seed: int):
    """What a tiny model has: a context of 512, where each micro-batch's price weighs the most."""
    lengths = heavy_tailed_lengths(128, context=512, answer=16, seed=seed)
    assert padding_fraction(lengths, plan(lengths, ranks, 8192)) <= 0.05


def computed(lengths: list[int], per_rank: list[list[list[int]]]) -> int:
    """What the rank with the most computes."""
    return max(
        sum(len(rows) * max(lengths[i] for i in rows) + MICRO_BATCH_PRICE for rows in packs if rows)
        for packs in per_rank
    )


@given(Lengths.filter(bool), st.integers(1, 8), st.integers(1, 2000))
def test_no_rank_waits_longer_than_if_rows_were_dealt_one_by_one(lengths: list[int], ranks: int, budget: int):
    one_by_one = [pack(lengths, hand, budget) for hand in deal(lengths, ranks)]
    assert computed(lengths, plan(lengths, ranks, budget)) <= computed(lengths, one_by_one)


def test_four_thousand_rows_are_planned_in_a_fraction_of_a_second():
    lengths = heavy_tailed_lengths(4096, context=2048, answer=60, seed=2)
    begun = time.process_time()
    plan(lengths, 1, 16384)
    assert time.process_time() - begun < 1.0


def test_similar_lengths_share_a_micro_batch():
    lengths = [100, 10, 99, 11, 98, 12] * 10
    assert padding_fraction(lengths, plan(lengths, 1, 1000)) < 0.1


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=12), min_size=1, max_size=8))
def test_collated_places_point_at_the_token_before_each_trained_one(masks: list[list[bool]]):
    rows = []
    for n, mask in enumerate(masks):
        ids = [10 * n + i for i in range(len(mask))]
        made = row(ids, [0, *mask[1:]], [-float(i) for i in ids], vocabulary=1000)
        if made is not None:
            rows.append(made)
    if not rows:
        return
    micro = collate(rows)
    before = micro.inputs.flatten()[micro.index]
    assert micro.targets.tolist() == (before + 1).tolist()
    assert micro.behaviour.tolist() == [-float(t) for t in micro.targets]
    assert len(micro.targets) == sum(sum(mask[1:]) for mask in masks)


def test_a_stand_in_for_a_missing_micro_batch_says_that_it_is_empty():
    micro = collate([])
    assert micro.empty and micro.inputs.shape == (1, 1) and len(micro.index) == 1


def test_old_logprobs_travel_with_their_rows():
    rows = [r for r in (row([1, 2, 3], [0, 1, 1]), row([4, 5], [0, 1])) if r is not None]
    assert collate(rows).old is None
    rows[0].old, rows[1].old = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])
    old = collate(rows[::-1]).old
    assert old is not None and old.tolist() == [-3.0, -1.0, -2.0]
