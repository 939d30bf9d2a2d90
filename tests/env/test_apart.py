"""An environment in a process of its own plays as it does here, and whatever becomes of it there stays there."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator

import pytest

import rockroll
from rockroll.env.apart import ApartEnv, Workers
from rockroll.errors import EnvError

GAMES = "tests.env.games"


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    workers = Workers()
    yield workers
    pids = workers.pids
    await workers.close()
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def running(group: int) -> bool:
    """Whether a process of that group lives; one that is dead and not yet buried does not."""
    said = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True).stdout
    return any(not state.startswith("Z") for state in said.split())


async def test_it_plays_the_same_episode_as_here(workers: Workers) -> None:
    here, there = (
        rockroll.make("rockroll:sokoban", level="tiny"),
        ApartEnv(workers, "rockroll:sokoban", {"level": "tiny"}),
    )
    for seed in (3, 4):
        assert await there.reset(seed) == here.reset(seed)
        for said in ("up", "nothing 🙂 \ud83d", "left"):
            assert await there.step(said) == here.step(said)
    there.close()


@pytest.mark.parametrize("name", ["OldGuess", "AsyncGuess"])
async def test_other_forms_of_an_env_are_read_there(workers: Workers, name: str) -> None:
    env = ApartEnv(workers, f"{GAMES}:{name}", {"highest": 0})
    await env.reset(0)
    assert await env.step("0") == ("right", 1.0, True, False, {})
    env.close()


async def test_a_worker_is_kept_for_the_next_episode_and_plays_one_at_a_time(workers: Workers) -> None:
    one, other = (ApartEnv(workers, f"{GAMES}:Pid", {}) for _ in range(2))
    pid, info = await one.reset(0)
    assert info == {"system": "play"} and (await other.reset(0))[0] != pid
    one.close()
    third = ApartEnv(workers, f"{GAMES}:Pid", {})
    assert (await third.reset(0))[0] == pid
    other.close()
    third.close()


async def test_a_hang_is_an_env_error_and_its_process_and_what_it_started_are_killed(workers: Workers) -> None:
    env = ApartEnv(workers, f"{GAMES}:Spins", {}, limit=1.0)
    await env.reset(0)
    (pid,) = workers.pids
    with pytest.raises(EnvError, match="step did not come back within 1 s; its process was killed"):
        await env.step("1")
    env.close()
    assert workers.pids == []
    async with asyncio.timeout(10):
        while running(pid):
            await asyncio.sleep(0.01)
    again = ApartEnv(workers, f"{GAMES}:Guess", {})
    await again.reset(0)
    again.close()


async def test_a_crash_is_an_env_error_that_says_how_and_what_was_said_last(workers: Workers) -> None:
    env = ApartEnv(workers, f"{GAMES}:Dies", {})
    await env.reset(0)
    with pytest.raises(EnvError, match=r"its process ended in step \(signal SIGSEGV: my last words"):
        await env.step("1")
    env.close()


async def test_what_it_raises_is_told_and_the_process_lives_on(workers: Workers) -> None:
    env = ApartEnv(workers, f"{GAMES}:Parses", {})
    await env.reset(0)
    before = workers.pids
    with pytest.raises(EnvError, match=r"Parses\.step raised ValueError: invalid literal"):
        await env.step("x")
    env.close()
    wrong = ApartEnv(workers, f"{GAMES}:Guess", {"hihgest": 1})
    with pytest.raises(EnvError, match="takes the options highest, split"):
        await wrong.reset(0)
    wrong.close()
    assert workers.pids == before


async def test_a_call_that_was_cancelled_costs_its_worker_and_no_other_episode(workers: Workers) -> None:
    env = ApartEnv(workers, f"{GAMES}:Hangs", {})
    await env.reset(0)
    step = asyncio.ensure_future(env.step("1"))
    await asyncio.sleep(0)
    step.cancel()
    await asyncio.gather(step, return_exceptions=True)
    env.close()
    assert workers.pids == []


async def test_after_a_hang_a_reset_starts_another_and_gets_no_late_answer(workers: Workers) -> None:
    env = ApartEnv(workers, f"{GAMES}:Hangs", {}, limit=1.0)
    await env.reset(0)
    with pytest.raises(EnvError, match="its process was killed"):
        await env.step("1")
    assert workers.pids == [], "it was"
    assert (await env.reset(7))[0].startswith("7: guess")
    env.close()


async def test_one_that_cannot_be_made_is_not_the_one_before_at_the_second_try(workers: Workers) -> None:
    before = ApartEnv(workers, f"{GAMES}:Pid", {})
    await before.reset(0)
    before.close()
    wrong = ApartEnv(workers, f"{GAMES}:Guess", {"hihgest": 1})
    for _ in range(2):
        with pytest.raises(EnvError, match="takes the options highest, split"):
            await wrong.reset(0)
    wrong.close()
