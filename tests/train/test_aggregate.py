"""Weights of rows: the sum over tokens is the aggregate, against plain Python and by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.train.aggregate import row_weights
from rockroll.train.algorithm import Aggregation


def test_by_hand():
    counts, episodes = [2, 6, 4], [0, 0, 1]  # the first episode has two branches
    assert row_weights(counts, episodes, kind="token_mean") == pytest.approx([1 / 12] * 3)
    assert row_weights(counts, episodes, kind="sequence_mean_of_sums") == pytest.approx([1 / 2] * 3)
    assert row_weights(counts, episodes, kind="sequence_mean_of_means") == pytest.approx([1 / 16, 1 / 16, 1 / 8])
    assert row_weights(counts, episodes, kind="constant_length", length=10) == pytest.approx([1 / 20] * 3)


def test_an_episode_with_nothing_left_is_in_no_denominator():
    for kind in ("token_mean", "sequence_mean_of_sums", "sequence_mean_of_means"):
        assert row_weights([0, 4], [0, 1], kind=kind) == [0.0, row_weights([4], [1], kind=kind)[0]]


def test_nothing_at_all_weighs_nothing():
    for kind in ("token_mean", "sequence_mean_of_sums", "sequence_mean_of_means"):
        assert row_weights([0, 0], [0, 1], kind=kind) == [0.0, 0.0]


@given(
    st.lists(st.tuples(st.lists(st.floats(-5, 5), max_size=6), st.integers(0, 3)), min_size=1, max_size=12),
    st.sampled_from(["token_mean", "sequence_mean_of_sums", "sequence_mean_of_means", "constant_length"]),
)
def test_the_weighted_sum_is_the_aggregate(rows: list[tuple[list[float], int]], kind: Aggregation):
    weights = row_weights([len(losses) for losses, _ in rows], [e for _, e in rows], kind=kind, length=7)
    found = sum(weight * sum(losses) for weight, (losses, _) in zip(weights, rows, strict=True))
    episodes: dict[int, list[float]] = {}
    for losses, episode in rows:
        episodes.setdefault(episode, []).extend(losses)
    said = [losses for losses in episodes.values() if losses]
    tokens = [loss for losses in said for loss in losses]
    if not tokens:
        assert found == 0
        return
    expected = {
        "token_mean": sum(tokens) / len(tokens),
        "sequence_mean_of_sums": sum(map(sum, said)) / len(said),
        "sequence_mean_of_means": sum(sum(losses) / len(losses) for losses in said) / len(said),
        "constant_length": sum(sum(losses) / 7 for losses in said) / len(said),
    }[kind]
    assert found == pytest.approx(expected, abs=1e-9)
