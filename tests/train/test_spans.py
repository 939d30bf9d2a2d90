"""Every trained token's advantage can be told in few words, and the number of words is bounded."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from rockroll.train.batch import Row
from rockroll.train.spans import spans


def row(positions: list[int], advantages: list[float], sample: int = 0) -> Row:
    at, n = torch.tensor(positions, dtype=torch.int64), len(positions)
    return Row(at, at, at, torch.zeros(n), torch.tensor(advantages, dtype=torch.float32), sample=sample)


def test_neighbours_with_one_advantage_are_one_span_and_a_gap_ends_it() -> None:
    assert spans([row([3, 4, 5, 9, 10], [0.5, 0.5, -1, -1, -1], sample=1)], 3, 10) == [
        [],
        [(4, 6, 0.5), (6, 7, -1.0), (10, 12, -1.0)],
        [],
    ]


def test_the_first_ones_are_told_where_there_are_more() -> None:
    assert spans([row([0, 1, 2], [1, 2, 3])], 1, 2) == [[(1, 2, 1.0), (2, 3, 2.0)]]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, -2.0])), min_size=1, max_size=40))
def test_they_say_exactly_what_the_row_has(tokens: list[tuple[bool, float]]) -> None:
    trained = [(i, value) for i, (on, value) in enumerate(tokens) if on]
    if not trained:
        return
    (told,) = spans([row([i for i, _ in trained], [v for _, v in trained])], 1, 1000)
    assert [(i, value) for start, end, value in told for i in range(start, end)] == [(i + 1, v) for i, v in trained]
    assert all(a[1] < b[0] or a[2] != b[2] for a, b in pairwise(told)), "spans that could be one"
