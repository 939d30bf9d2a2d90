"""`rockroll bench env` plays every built-in environment that is stepped, here and through worker processes."""

from __future__ import annotations

import math
import time

from rockroll.bench import env
from rockroll.env.api import Env
from rockroll.env.registry import BUILT_IN, find


def test_every_built_in_environment_that_is_stepped_is_in_it() -> None:
    assert set(env.ENVS) == {name for name in BUILT_IN if issubclass(find(name), Env)}


def test_it_says_what_each_does_beside_the_floor() -> None:
    figures = env.measure(0.02)["figures"]
    assert len(figures) == 1 + 3 * len(env.ENVS) and figures["floor_round_trip_us"] > 0
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    # The bound is 20,000 (docs/tasks.md) where a loop as below goes round 100,000 times a second. Other machines are
    # slower, and so short a time is a rough measure.
    assert min(value for name, value in figures.items() if name.endswith("_per_cpu_s")) > 0.08 * loops(), figures


def loops() -> float:
    """How fast this machine is just now: a dict of a hundred, so often in a second of processor time."""
    done, began = 0, time.process_time()
    while (spent := time.process_time() - began) < 0.1:
        _ = {str(i): [i] for i in range(100)}
        done += 1
    return done / spent
