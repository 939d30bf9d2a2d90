"""What a cluster loses when something of it fails, and how soon that is known (docs/cluster.md has the table)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rockroll import Sandbox, SandboxConfig, rpc
from rockroll.errors import PeerLost, SandboxLost
from rockroll.sandbox.client import list_sandboxes
from rockroll.sandbox.cluster.client import HubNode
from rockroll.sandbox.pool import Pool
from tests.placement.conftest import Two

SMALL = SandboxConfig(memory="64m", pids=64)
NOTICED_S = 5.0


@pytest.fixture
async def hub(hub: HubNode) -> HubNode:
    await up(hub)
    return hub


async def up(hub: HubNode) -> None:
    """Both nodes are there."""
    async with asyncio.timeout(60):
        while sorted(view.name for view in hub.nodes if view.state == "up") != ["left", "right"]:
            await asyncio.sleep(0.1)


async def box_on(node: str) -> Sandbox:
    """A box on that node."""
    others = []
    try:
        while True:
            box = await Sandbox(SMALL).start()
            if box.info.node == node:
                return box
            others.append(box)
    finally:
        await asyncio.gather(*(box.delete() for box in others))


async def lost_after(box: Sandbox) -> float:
    """Seconds until a call under way in it is told that its node is lost."""
    began = time.monotonic()
    with pytest.raises(SandboxLost) as told:
        await box.arun("sleep 100")
    assert told.value.fields["cause"] == "node_lost"
    return time.monotonic() - began


async def test_a_killed_node_costs_the_boxes_on_it_and_a_pool_replaces_them_on_others(hub: HubNode, two: Two) -> None:
    async with Pool(SMALL, 4) as pool, contextlib.AsyncExitStack() as leases:
        boxes = [await leases.enter_async_context(pool.lease()) for _ in range(4)]
        on = {name: [box for box in boxes if box.info.node == name] for name in ("left", "right")}
        assert len(on["left"]) == len(on["right"]) == 2
        waits = [asyncio.ensure_future(lost_after(box)) for box in on["left"]]
        others = [asyncio.ensure_future(box.arun("sleep 4; echo untouched")) for box in on["right"]]
        await asyncio.sleep(0.5)
        warden = int((two[1]["left"].path / "node" / "warden.lock").read_text().split()[0])
        os.kill(warden, signal.SIGSTOP)  # else another node is there before anybody has noticed
        try:
            began = time.monotonic()
            os.kill(two[1]["left"].pid, signal.SIGKILL)
            await asyncio.gather(*waits)
            assert time.monotonic() - began < NOTICED_S
            assert [(await each).stdout for each in others] == [b"untouched\n"] * 2
            await leases.aclose()
            async with contextlib.AsyncExitStack() as again:
                boxes = [await again.enter_async_context(pool.lease()) for _ in range(4)]
                assert {box.info.node for box in boxes} == {"right"}
        finally:
            os.kill(warden, signal.SIGCONT)
        await up(hub)
    assert await list_sandboxes() == []


@pytest.mark.slow
async def test_a_node_that_hangs_is_suspect_and_taken_back_and_what_was_given_up_there_goes(
    hub: HubNode, two: Two
) -> None:
    box, kept = await box_on("left"), await box_on("left")
    waiting = asyncio.ensure_future(lost_after(box))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    os.kill(two[1]["left"].pid, signal.SIGSTOP)
    try:
        await waiting
        assert time.monotonic() - began < NOTICED_S
        async with Sandbox(SMALL) as other:
            assert other.info.node == "right"
        await box.delete()
        with pytest.raises(SandboxLost, match="out of reach"):
            await kept.arun("true")
    finally:
        os.kill(two[1]["left"].pid, signal.SIGCONT)
    await up(hub)
    assert (await kept.arun("echo back")).stdout == b"back\n"
    async with asyncio.timeout(20):
        while [info.id for info in await list_sandboxes()] != [kept.id]:
            await asyncio.sleep(0.1)
    await kept.delete()


async def test_a_box_whose_maker_was_not_told_of_it_goes(hub: HubNode, monkeypatch: pytest.MonkeyPatch) -> None:
    call = rpc.Client.call

    async def unheard(self: rpc.Client, method: str, body: Any = None, **more: Any) -> Any:
        done = await call(self, method, body, **more)
        if method == "sandbox.create":
            raise PeerLost("the node was not heard with the reply in its hands")
        return done

    monkeypatch.setattr(rpc.Client, "call", unheard)
    with pytest.raises(SandboxLost):
        await Sandbox(SMALL, owner="detached").start()
    with pytest.raises(SandboxLost):
        await Sandbox(SMALL, owner="detached").start_when_there_is_room()
    assert await list_sandboxes() == []


async def test_a_hub_that_is_killed_and_started_anew_costs_no_call_and_no_box(hub: HubNode, two: Two) -> None:
    box = await box_on("left")
    waiting = asyncio.ensure_future(box.arun("sleep 2; echo done"))
    await asyncio.sleep(0.3)
    two[0].stop(signal.SIGKILL)
    two[0].start()
    assert (await waiting).stdout == b"done\n"
    await up(hub)
    assert [info.id for info in await list_sandboxes()] == [box.id]
    assert (await Sandbox.attach(box.id)).info.node == "left"
    async with Sandbox(SMALL):
        pass
    await box.delete()


@pytest.mark.slow
async def test_nodes_that_are_slow_to_come_back_to_a_new_hub_are_waited_for(hub: HubNode, two: Two) -> None:
    box = await box_on("left")
    waiting = asyncio.ensure_future(box.arun("sleep 2; echo done"))
    await asyncio.sleep(0.3)
    pids = [host.pid for host in two[1].values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        two[0].stop(signal.SIGKILL)
        two[0].start()
        new = asyncio.ensure_future(Sandbox(SMALL).start())
        found = asyncio.ensure_future(Sandbox.attach(box.id))
        listed = asyncio.ensure_future(list_sandboxes())
        await asyncio.wait([new, found, listed, waiting], timeout=8, return_when=asyncio.FIRST_COMPLETED)
        assert not any(each.done() for each in (new, found, listed, waiting))
        assert {view.name: view.state for view in await hub.refresh()} == dict.fromkeys(two[1], "returning")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    async with asyncio.timeout(30):
        assert (await waiting).stdout == b"done\n"
        assert (await found).info.node == "left" and box.id in {info.id for info in await listed}
        await (await new).delete()
    await box.delete()


@pytest.mark.slow
async def test_what_a_killed_client_owned_goes_on_every_node(hub: HubNode, two: Two, tmp_path: Path) -> None:
    code = """
import asyncio
from rockroll import Sandbox, SandboxConfig
async def main():
    boxes = [await Sandbox(SandboxConfig(memory="64m", pids=64)).start() for _ in range(2)]
    print(*(box.info.node for box in boxes), flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert client.stdout
    assert sorted((await client.stdout.readline()).split()) == [b"left", b"right"]
    assert len(await list_sandboxes()) == 2
    client.kill()
    await client.wait()
    async with asyncio.timeout(20):
        while await list_sandboxes():
            await asyncio.sleep(0.1)
