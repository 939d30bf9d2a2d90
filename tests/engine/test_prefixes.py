"""The longest shared prefix, against the obvious loop."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rockroll.engine.prefixes import Prefixes

IDS = st.lists(st.integers(0, 2), max_size=12)


def shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(known=st.lists(IDS, min_size=1, max_size=6), ids=IDS)
def test_longest_is_the_loops_answer(known: list[list[int]], ids: list[int]) -> None:
    table = Prefixes(8)
    for number, sequence in enumerate(known):
        table.set(number, [*sequence, 1, 1], len(sequence))
    number, length = table.longest(ids)
    assert length == max(shared(sequence, ids) for sequence in known)
    assert length == 0 or shared(known[number], ids) == length


def test_what_is_dropped_or_moved_is_not_found_there() -> None:
    table = Prefixes(3)
    table.set(0, [1, 2, 3], 3)
    table.set(1, [1, 2], 2)
    table.move(0, 2)
    assert table.longest([1, 2, 3, 4]) == (2, 3)
    table.drop(2)
    assert table.longest([1, 2, 3, 4]) == (1, 2)
    table.clear()
    assert table.longest([1, 2]) == (0, 0)


def test_long_sequences_widen_the_table() -> None:
    table = Prefixes(2)
    table.set(0, [4, 5], 2)
    table.set(1, list(range(700)), 700)
    assert table.longest(list(range(650))) == (1, 650)
    assert table.longest([4, 5, 6]) == (0, 2)


def test_a_table_of_nothing_shares_nothing() -> None:
    assert Prefixes(0).longest([1, 2, 3]) == (0, 0)
