"""Many environments at once, and environments that are waited for: the same episodes, here and in worker processes."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

import rockroll
from rockroll.env.vector import Vector, Where
from rockroll.errors import EnvError, UsageError

GAMES = "tests.env.games"


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture(params=["here", "process"])
def where(request: pytest.FixtureRequest) -> Where:
    return request.param


def made(name: str, n: int, where: Where, **more: Any) -> Vector:
    return rockroll.make_vec(name, n, where=where, workers=2 if where == "process" else None, **more)


def test_each_is_the_episode_that_it_is_alone(where: Where) -> None:
    alone = [rockroll.make("rockroll:sokoban", level="tiny") for _ in range(5)]
    with made("rockroll:sokoban", 5, where, level="tiny") as envs:
        assert envs.reset(7) == ([env.reset(7 + i)[0] for i, env in enumerate(alone)], [{}] * 5)
        for actions in (["up"] * 5, ["left", "down", "nothing \ud83d", "🙂", "right"]):
            steps = [env.step(action) for env, action in zip(alone, actions, strict=True)]
            assert envs.step(actions) == tuple(map(list, zip(*steps, strict=True)))


def test_next_step_begins_the_next_episode_with_the_step_after_the_end(where: Where) -> None:
    with made(f"{GAMES}:Guess", 2, where, highest=0) as envs:
        envs.reset(10)
        assert envs.step(["0", "1"])[:4] == (["right", "wrong"], [1.0, 0.0], [True, False], [False, False])
        seen, rewards, terminated, truncated, _ = envs.step(["0", "0"])
        assert seen == ["12: guess a digit from 0 to 0.", "right"], "the seed, and two environments"
        assert (rewards, terminated, truncated) == ([0.0, 1.0], [False, True], [False, False])
        assert envs.step(["0", "0"])[0] == ["right", "13: guess a digit from 0 to 0."]


def test_same_step_begins_it_at_once_and_keeps_what_the_old_one_ended_with(where: Where) -> None:
    with made(f"{GAMES}:Guess", 2, where, highest=0, autoreset="same_step") as envs:
        envs.reset([3, 8])
        seen, rewards, terminated, _, infos = envs.step(["0", "1"])
        assert seen == ["5: guess a digit from 0 to 0.", "wrong"]
        assert (rewards, terminated) == ([1.0, 0.0], [True, False])
        assert infos == [{"final_obs": "right", "final_info": {}}, {}]
        assert envs.step(["0", "1"])[1] == [1.0, 0.0]


def test_disabled_leaves_it_to_reset_with_a_mask(where: Where) -> None:
    with made(f"{GAMES}:Guess", 2, where, highest=0, autoreset="disabled") as envs:
        with pytest.raises(EnvError, match=r"the first reset.* is of all"):
            envs.reset(0, mask=[True, False])
        envs.reset(0)
        *_, over, _, _ = envs.step(["0", "1"])
        seen, _ = envs.reset(mask=over)
        assert seen == ["2: guess a digit from 0 to 0.", "wrong"]
        envs.step(["0", "1"])
        with pytest.raises(EnvError, match="environment 0 is over: call reset before step"):
            envs.step(["0", "1"])


def test_what_one_raises_names_it_and_reset_begins_all_anew(where: Where) -> None:
    with made(f"{GAMES}:Parses", 3, where) as envs:
        envs.reset(0)
        with pytest.raises(EnvError, match=r"environment 2: step raised ValueError: invalid literal"):
            envs.step(["1", "2", "x"])
        assert len(envs.reset(0)[0]) == 3
        envs.step(["1", "2", "3"])


@pytest.mark.parametrize(("env", "says"), [("Spins", "step did not come back within 1 s"), ("Dies", "ended in step")])
def test_a_hang_or_a_crash_ends_the_processes_and_reset_starts_others(env: str, says: str) -> None:
    with rockroll.make_vec(f"{GAMES}:{env}", 2, where="process", workers=2, limit=1.0) as envs:
        envs.reset(0)
        pids = envs._vector.pids
        with pytest.raises(EnvError, match=says):
            envs.step(["1", "1"])
        assert len(pids) == 2 and all(map(gone, pids))
        assert len(envs.reset(0)[0]) == 2
        pids = envs._vector.pids
    assert all(map(gone, pids))


async def test_all_of_it_can_be_waited_for(where: Where) -> None:
    async with rockroll.make_async(f"{GAMES}:AsyncGuess", 3, where=where, highest=0) as envs:
        await envs.reset(0)
        assert (await envs.step(["0", "0", "1"]))[1] == [1.0, 1.0, 0.0]
    for name in ("AsyncGuess", "OldGuess"):
        async with rockroll.make_async(f"{GAMES}:{name}", where=where, highest=0) as env:
            assert (await env.reset(4))[0] == "4: guess a digit from 0 to 0."
            assert (await env.step("0"))[1:3] == (1.0, True)


async def test_the_blocking_form_says_so_in_a_coroutine() -> None:
    envs = rockroll.make_vec(f"{GAMES}:Guess", 1, where="process")
    with pytest.raises(UsageError, match=r"use rockroll\.make_async"):
        envs.reset(0)
    await asyncio.to_thread(envs.reset, 0)
    await asyncio.to_thread(envs.close)


def test_environments_that_wait_are_waited_for_together() -> None:
    with rockroll.make_vec(f"{GAMES}:AsyncGuess", 4, highest=0) as envs:
        envs.reset(0)
        assert envs.step(["0"] * 4)[1] == [1.0] * 4


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"n": 0}, "n is 1 or more"),
        ({"where": "box"}, "where is here or process"),
        ({"workers": 2}, 'with where="process"'),
        ({"autoreset": "never"}, "autoreset is next_step, same_step, disabled; got 'never'"),
        ({"hihgest": 1}, "takes the options highest, split"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        rockroll.make_vec(f"{GAMES}:Guess", **{"n": 2, **more})


def test_as_many_actions_as_environments() -> None:
    with rockroll.make_vec(f"{GAMES}:Guess", 2) as envs:
        envs.reset(0)
        for actions in (["1"], "12"):
            with pytest.raises(UsageError, match="actions: one for each of 2 environments"):
                envs.step(actions)
        with pytest.raises(UsageError, match="a seed for each of 2 environments"):
            envs.reset([1])
