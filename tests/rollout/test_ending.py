"""How an episode's work ended: also where something that it awaited was cancelled, and not the episode."""

from __future__ import annotations

import asyncio
import math

import pytest

from rockroll.rollout.clock import Holder, Watch
from rockroll.rollout.ending import Ending, ending_of


@pytest.mark.parametrize(("holder", "happened"), [("env", "env_raised"), ("ours", "ours_failed")])
async def test_a_cancellation_from_inside_is_a_failure_and_none_of_the_episode(holder: Holder, happened: str) -> None:
    watch = Watch(cap=math.inf, stall=math.inf)

    async def work() -> Ending:
        watch.hold(holder)
        own = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(own.cancel)
        await own
        return Ending("finished", 1.0)

    ending = await asyncio.create_task(ending_of(watch.within(work()), watch, {}))
    assert ending.happened == happened and "was cancelled" in ending.detail


async def test_an_episode_that_is_cancelled_raises() -> None:
    watch = Watch(cap=math.inf, stall=math.inf)

    async def work() -> Ending:
        await asyncio.Event().wait()
        return Ending("finished", 1.0)

    task = asyncio.create_task(ending_of(watch.within(work()), watch, {}))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
