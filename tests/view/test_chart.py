"""Curves show what was measured: every point, or the extremes of each stretch, and smoothing never in their place."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rockroll.view.chart import Series, chart, nice_ticks, number, smoothed, strip, thin

POINTS = [(float(x), x % 5 / 5) for x in range(20)]
values = st.floats(-1e9, 1e9, allow_nan=False)


def test_every_raw_point_is_drawn_with_and_without_smoothing() -> None:
    for smooth in (0.0, 0.9):
        svg = chart([Series(name="a", points=POINTS)], label="a", smooth=smooth)
        dots = re.search(r'class="dots[^"]*" d="([^"]*)"', svg)
        assert dots and dots[1].count("M") == 20
    assert 'class="dots faint"' in svg, "the smoothed line stands before them"


def test_an_evaluation_has_its_interval() -> None:
    svg = chart([Series(name="a", points=[(0, 0.5)], intervals={0: (0.4, 0.65)})], label="a")
    assert svg.count('class="interval"') == 1 and ">0.4<" in svg


def test_numbers_that_are_none_are_left_out() -> None:
    svg = chart([Series(name="a", points=[(0, 1), (1, float("nan")), (2, float("inf")), (3, 2)])], label="a", big=True)
    assert 'data-points="0:1 3:2"' in svg and "nan" not in svg and "inf" not in svg
    assert "No points yet" in chart([Series(name="a", points=[(0, float("nan"))])], label="a")


def test_names_cannot_leave_their_attributes() -> None:
    svg = chart([Series(name='"><script>', points=POINTS)], label='"><script>', big=True)
    assert "<script" not in svg and "&#34;&gt;&lt;script&gt;" in svg


def test_smoothing_starts_at_the_first_point_and_follows() -> None:
    assert [y for _, y in smoothed([(0, 1), (1, 1), (2, 1)], 0.9)] == pytest.approx([1, 1, 1])
    assert smoothed([(0, 0), (1, 1)], 0.5)[1][1] == pytest.approx(2 / 3)  # (0.5·0.5·0 + 0.5·1) / (1 − 0.25)


@given(st.lists(values, min_size=1, max_size=2000), st.integers(4, 300))
def test_thinning_keeps_order_bound_and_extremes(ys: list[float], most: int) -> None:
    points = [(float(x), y) for x, y in enumerate(ys)]
    shown = thin(points, most)
    assert shown == sorted(shown) and set(shown) <= set(points) and len(shown) <= most
    assert {min(y for _, y in shown), max(y for _, y in shown)} == {min(ys), max(ys)}


@given(values, values, st.integers(2, 8))
@example(0.0, 5e-324, 3)
@example(0.0, 5e-324, 2)
@example(5e-324, 5e-324, 2)
@example(0.23647459905774812, 0.23647459905774815, 4)
def test_ticks_are_few_and_enclose_the_values(a: float, b: float, about: int) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high, about)
    slack = (ticks[-1] - ticks[0]) * 1e-6
    assert 2 <= len(ticks) <= 2 * about + 3 and ticks[0] < ticks[-1]
    assert ticks[0] <= low + slack and high <= ticks[-1] + slack


def test_equal_rewards_stand_apart_and_within_the_strip() -> None:
    svg = strip([(1.0, "/a")] * 40, 0.0, 1.0, 1.0)
    places = re.findall(r'cx="([\d.]+)" cy="(\d+)"', svg)
    assert len(set(places)) == 40 and all(0 <= float(x) <= 220 and 0 <= int(y) <= 34 for x, y in places)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (1200, "1,200"),
        (0.123456, "0.1235"),
        (1.23e-6, "1.2e-06"),
        (-8.5e7, "-8.5e+07"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_are_short(value: float, said: str) -> None:
    assert number(value) == said
