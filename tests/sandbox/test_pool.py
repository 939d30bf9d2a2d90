"""What `Pool` promises: warm boxes, as good as new for each lease, and none left at the end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

import pytest

from rockroll import Sandbox, SandboxConfig, rpc
from rockroll.errors import ImageMissing, SandboxError, SandboxLost, SandboxNotFound
from rockroll.sandbox.pool import Pool
from rockroll.sandbox.wire import Empty, NodeInfo, Ref, SandboxInfo, SessionInfo

SMALL = SandboxConfig(memory="128m", pids=64)

pytestmark = pytest.mark.usefixtures("node")


async def boxes(node: rpc.Client) -> list[SandboxInfo]:
    return await node.call("sandbox.list", Empty(), type=list[SandboxInfo])


async def test_a_lease_gives_a_running_box_with_an_open_session(node: rpc.Client) -> None:
    async with Pool(SMALL, 1) as pool, pool.lease() as sandbox:
        sessions = await node.call("session.list", Ref(id=sandbox.id), type=list[SessionInfo])
        assert [each.session for each in sessions] == ["default"]
        assert (await sandbox.arun("echo ready")).stdout == b"ready\n"


async def test_nothing_of_a_lease_is_left_for_the_next_one() -> None:
    async with Pool(SMALL, 1) as pool:
        async with pool.lease() as first:
            await first.arun("x=1; touch /srv/mine; (setsid sleep 1000 &)")
        async with pool.lease() as second:
            assert second.id == first.id, "the box should have been recycled, not replaced"
            assert (await second.arun("echo [$x]; ls /srv; pgrep -r D,R,S,T -c sleep")).stdout == b"[]\n0\n"


async def test_more_leases_than_boxes_wait_their_turn(node: rpc.Client) -> None:
    at_once = most = 0
    pair = asyncio.Barrier(2)

    async def episode(pool: Pool, number: int) -> bytes:
        nonlocal at_once, most
        async with pool.lease() as sandbox:
            at_once += 1
            most = max(most, at_once)
            await pair.wait()
            seen = await sandbox.arun(f"echo {number}")
            at_once -= 1
            return seen.stdout

    async with Pool(SMALL, 2) as pool:
        seen = await asyncio.gather(*(episode(pool, number) for number in range(8)))
        assert seen == [f"{number}\n".encode() for number in range(8)]
        assert most == 2
        assert len(await boxes(node)) <= 2


async def test_a_box_that_died_in_a_lease_is_replaced() -> None:
    async with Pool(SMALL, 1) as pool:
        async with pool.lease() as broken:
            await (await Sandbox.attach(broken.id)).delete()
        async with pool.lease() as whole:
            assert whole.id != broken.id
            assert (await whole.arun("echo whole")).stdout == b"whole\n"


async def test_a_pool_outlives_its_node(node: rpc.Client, end_process: Callable[..., None]) -> None:
    async with Pool(SMALL, 2) as pool:
        async with pool.lease() as lost:
            pid = (await node.call("node.info", Empty(), type=NodeInfo)).pid
            await asyncio.to_thread(end_process, pid, signal.SIGKILL)
            with pytest.raises((SandboxLost, SandboxNotFound)):
                await lost.arun("true")
        async with pool.lease() as one, pool.lease() as other:  # not the one that was on the shelf when its node died
            assert (await one.arun("echo again")).stdout == b"again\n"
            assert (await other.arun("echo again")).stdout == b"again\n"


async def test_an_error_in_a_lease_gives_the_box_back() -> None:
    async with Pool(SMALL, 1) as pool:
        with contextlib.suppress(ZeroDivisionError):
            async with pool.lease():
                raise ZeroDivisionError
        async with asyncio.timeout(20), pool.lease():
            pass


async def test_a_waiter_that_is_cancelled_costs_no_box() -> None:
    async with Pool(SMALL, 1) as pool:
        async with pool.lease():
            waiting = asyncio.ensure_future(pool.lease().__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with asyncio.timeout(20), pool.lease():
            pass


async def test_boxes_that_cannot_start_are_an_error_for_who_waits() -> None:
    async with Pool(SandboxConfig(image="localhost/nothing-here:1"), 2) as pool:
        for _ in range(3):
            with pytest.raises(ImageMissing):
                async with pool.lease():
                    pass


async def test_close_deletes_every_box_and_ends_every_wait(node: rpc.Client) -> None:
    pool = await Pool(SMALL, 2).start()
    lease, other = pool.lease(), pool.lease()
    await lease.__aenter__()
    await other.__aenter__()
    waiting = asyncio.ensure_future(pool.lease().__aenter__())
    await asyncio.sleep(0)
    await pool.close()
    with pytest.raises(SandboxError, match="closed"):
        await waiting
    assert await boxes(node) == []
    await lease.__aexit__(None, None, None)
    await other.__aexit__(None, None, None)
    with pytest.raises(SandboxError, match="closed"):
        await pool.lease().__aenter__()


async def test_a_box_that_resisted_its_deletion_goes_with_the_pool(
    node: rpc.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, refused = Sandbox.delete, 0

    async def refuses_once(self: Sandbox) -> None:
        nonlocal refused
        refused += 1
        if refused == 1:
            raise SandboxError("its container could not be removed")
        await delete(self)

    async def cannot(self: Sandbox) -> None:
        raise SandboxError("it could not be made new")

    monkeypatch.setattr(Sandbox, "delete", refuses_once)
    monkeypatch.setattr(Sandbox, "recycle", cannot)
    async with Pool(SMALL, 1) as pool:
        async with pool.lease() as stubborn:
            pass
        async with pool.lease() as other:
            assert other.id != stubborn.id
            assert stubborn.id in {each.id for each in await boxes(node)}
    assert await boxes(node) == []


async def test_close_in_the_middle_of_starting_leaves_nothing(node: rpc.Client) -> None:
    pool = await Pool(SMALL, 4).start()
    await asyncio.sleep(0.1)
    await pool.close()
    assert await boxes(node) == []


def test_a_pool_says_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Pool(SMALL, 0)
    with pytest.raises(ValueError, match="name"):
        Pool(SandboxConfig(name="one"), 2)
