"""`rockroll bench env` plays every built-in environment that is stepped, here and through worker processes."""

from __future__ import annotations

import math

from rockroll.bench import env
from rockroll.env.api import Env
from rockroll.env.registry import BUILT_IN, find


def test_every_built_in_environment_that_is_stepped_is_in_it() -> None:
    assert set(env.ENVS) == {name for name in BUILT_IN if issubclass(find(name), Env)}


def test_it_says_what_each_does_beside_the_floor() -> None:
    figures = env.measure(0.02)["figures"]
    assert len(figures) == 1 + 3 * len(env.ENVS) and figures["floor_round_trip_us"] > 0
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    # The bound is 20,000 (docs/tasks.md); here the machine may be busy, and so short a time is a rough measure.
    assert min(value for name, value in figures.items() if name.endswith("_per_cpu_s")) > 8_000, figures
