"""The times of an episode: what counts against it, what does not, and who is to blame when one is up."""

from __future__ import annotations

import asyncio
import math

import pytest

from rockroll.rollout.clock import Clock, Expired, TimeUp, Watch


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def test_an_agent_s_limit_stands_still_while_the_model_is_asked(time: Time) -> None:
    clock = Clock(time, agent=10)
    clock.hold("agent")
    time.now += 4
    clock.asks(True)
    assert clock.due == math.inf
    time.now += 1000  # a weight update, say
    clock.asks(True)  # a second call at the same time
    clock.asks(True)  # one of them is answered
    time.now += 1
    clock.asks(False)
    assert clock.due == time.now + 6
    time.now += 6
    assert clock.expired() == Expired("agent", "agent", 10)
    assert clock.spent == {"pool": 0, "agent": 10, "engine": 1001}


def test_waiting_for_a_sandbox_counts_against_nothing(time: Time) -> None:
    clock = Clock(time, cap=10, stall=5)
    time.now += 1000
    assert clock.due == math.inf
    clock.hold("env")
    assert clock.due == time.now + 5


def test_no_progress_is_the_holder_s_fault_and_any_move_is_progress(time: Time) -> None:
    clock = Clock(time, cap=100, stall=5)
    clock.hold("env")
    time.now += 4
    clock.asks(True)
    time.now += 4
    assert clock.due == time.now + 1
    clock.asks(True)
    assert clock.due == time.now + 5
    time.now += 5
    assert clock.expired() == Expired("stall", "engine", 5)


def test_the_wall_clock_is_the_fault_of_whoever_held_it_most(time: Time) -> None:
    clock = Clock(time, cap=10)
    time.now += 50
    clock.hold("ours")
    time.now += 1
    clock.hold("agent")
    time.now += 2
    clock.asks(True)
    time.now += 6
    clock.asks(False)
    time.now += 1
    assert clock.due == time.now
    assert clock.expired() == Expired("cap", "engine", 10)


async def test_a_watch_acts_at_the_moment_and_what_is_cancelled_changes_no_blame() -> None:
    watch = Watch(cap=60, stall=0.05)
    ended = False

    async def work() -> None:
        nonlocal ended
        watch.hold("env")
        try:
            await asyncio.Event().wait()
        finally:
            ended = True
            watch.hold("ours")

    watch.hold("ours")
    with pytest.raises(TimeUp) as up:
        await watch.within(work())
    assert ended and up.value.expired == Expired("stall", "env", 0.05)


async def test_a_limit_that_moved_is_kept_where_it_is_now() -> None:
    watch = Watch(cap=60, stall=60, agent=0.05)

    async def work() -> str:
        watch.hold("agent")
        watch.asks(True)
        await asyncio.sleep(0.1)
        watch.asks(False)
        return "answered"

    watch.hold("ours")
    assert await watch.within(work()) == "answered"


async def test_progress_puts_a_limit_off_and_its_end_is_found_all_the_same() -> None:
    """The timer of a limit that went away is not set anew: it looks again when it rings."""
    watch, loop = Watch(cap=60, stall=0.2), asyncio.get_running_loop()
    last = 0.0

    async def work() -> None:
        nonlocal last
        for asking in (True, False) * 4:
            await asyncio.sleep(0.05)
            watch.asks(asking)
        last = loop.time()
        await asyncio.Event().wait()

    watch.hold("env")
    with pytest.raises(TimeUp) as up:
        await watch.within(work())
    assert up.value.expired == Expired("stall", "env", 0.2)
    assert loop.time() - last >= 0.199


async def test_a_limit_that_came_nearer_is_kept() -> None:
    watch = Watch(cap=60, stall=60)

    async def work() -> None:
        watch.hold("agent")
        watch.limit("agent", 0.05)
        await asyncio.Event().wait()

    watch.hold("ours")
    with pytest.raises(TimeUp) as up:
        await watch.within(work())
    assert up.value.expired == Expired("agent", "agent", 0.05)


async def test_a_timeout_of_the_work_s_own_is_its_own() -> None:
    async def work() -> None:
        raise TimeoutError("mine")

    watch = Watch(cap=60, stall=60)
    watch.hold("env")
    with pytest.raises(TimeoutError, match="mine"):
        await watch.within(work())
