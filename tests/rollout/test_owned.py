"""Tasks that belong to a block end with it, whatever happens meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from rockroll.rollout.owned import Owned


async def test_a_block_that_is_cancelled_while_it_cancels_awaits_its_tasks_and_tells_them_once() -> None:
    heard, cleared, clearing = [], [], asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.append("cancelled")
            await clearing.wait()  # a sandbox that is being given back
            cleared.append("cleared")
            raise

    async def block() -> None:
        async with Owned() as owned:
            owned.start(work())
            await asyncio.sleep(0)
            await owned.cancel()

    running = asyncio.ensure_future(block())
    while not heard:
        await asyncio.sleep(0)
    running.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not running.done() and not cleared
    clearing.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert heard == ["cancelled"] and cleared == ["cleared"]
    assert asyncio.all_tasks() == {asyncio.current_task()}
