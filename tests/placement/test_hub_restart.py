"""A hub that is started anew knows the nodes of the one before, and what needs them waits for them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rockroll.errors import NoRoom, SandboxNotFound
from rockroll.placement import hub_roster
from rockroll.placement.hub_placing import HubPlacing
from rockroll.placement.hub_roster import Roster
from rockroll.sandbox.cluster.presence import FORGET_S
from rockroll.sandbox.cluster.scheduler import Scheduler
from rockroll.sandbox.cluster.wire import BoxRow, Drain, Load, Want, Where
from rockroll.sandbox.wire import Empty

GB = 2**30
WANT = Want(owner="me", cpus=1, memory=GB, pids=100, image="base")
ROW = BoxRow(id="abc", name="a", account="me", cpus=1, memory=GB, pids=100, image="base")
PEER: Any = None


class Restarted:
    """A hub's part for clients, whose hub before had the nodes left and right."""

    def __init__(self, path: Path) -> None:
        before = Roster(path)
        for number, name in enumerate(("left", "right")):
            before.joined(name, bytes([1, number]))
        before.drain("right", True)
        self.scheduler, self.roster, self.trunks = Scheduler(), Roster(path), dict[str, bytes]()
        self.placing = HubPlacing(self.scheduler, self.trunks, {}, self.roster, lambda: self.placing.notify())
        self.calls: dict[str, Callable[..., Any]] = self.placing.handlers()

    def join(self, name: str) -> None:
        self.trunks[name] = b"\1new"
        self.scheduler.join(name, 8, 2 * GB, 1000, ["base"], Load(room=10, limit=10, busy=0))
        self.roster.joined(name, b"\1new")
        if name == "left":
            self.scheduler.put(name, ROW)
        if name in self.roster.drained:
            self.scheduler.mark(name, "draining")
        self.scheduler.dispatch()
        self.placing.notify()

    async def states(self) -> dict[str, str]:
        return {view.name: view.state for view in await self.calls["cluster.nodes"](Empty(), PEER)}


@pytest.fixture
async def hub(tmp_path: Path) -> Restarted:
    return Restarted(tmp_path / "cluster.json.nodes")


async def soon(*waiting: asyncio.Future[Any]) -> None:
    """What can be answered is."""
    await asyncio.wait(waiting, timeout=0.05)


async def test_a_box_waits_for_a_node_that_is_on_its_way_back(hub: Restarted) -> None:
    placed = asyncio.ensure_future(hub.calls["cluster.place"](WANT, PEER))
    found = asyncio.ensure_future(hub.calls["cluster.where"](Where(id="abc"), PEER))
    await soon(placed, found)
    assert not placed.done() and not found.done()
    assert await hub.states() == {"left": "returning", "right": "returning"}
    hub.join("right")
    await soon(placed, found)
    assert not placed.done(), "right was drained before, and is drained still"
    assert await hub.states() == {"left": "returning", "right": "draining"}
    hub.join("left")
    assert (await placed).node == (await found).node == "left"
    assert await hub.states() == {"left": "up", "right": "draining"}


async def test_when_all_are_back_what_has_no_room_is_refused_and_what_is_nowhere_not_found(hub: Restarted) -> None:
    wide = asyncio.ensure_future(hub.calls["cluster.place"](Want(**{**_fields(WANT), "cpus": 9000}), PEER))
    nowhere = asyncio.ensure_future(hub.calls["cluster.where"](Where(id="nowhere"), PEER))
    hub.join("left")
    await soon(wide, nowhere)
    assert not wide.done() and not nowhere.done()
    hub.join("right")
    with pytest.raises(NoRoom) as refused:
        await asyncio.wait_for(wide, 1)
    assert "not back" not in refused.value.message
    with pytest.raises(SandboxNotFound):
        await asyncio.wait_for(nowhere, 1)


async def test_who_does_not_come_back_is_waited_for_so_long_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_roster, "SETTLE_S", 0.3)
    hub = Restarted(tmp_path / "nodes")
    seen: list[set[str]] = []

    async def watch() -> None:
        async for views in hub.calls["cluster.watch"](Empty(), PEER):
            seen.append({view.name for view in views})

    watching = asyncio.ensure_future(watch())
    with pytest.raises(NoRoom, match="these are not back: left, right"):
        await asyncio.wait_for(hub.calls["cluster.place"](WANT, PEER), 2)
    with pytest.raises(SandboxNotFound):
        await hub.calls["cluster.where"](Where(id="abc"), PEER)
    await soon(watching)
    assert seen == [{"left", "right"}, set()], "clients are told that they are not waited for any more"
    watching.cancel()


async def test_a_place_that_came_for_a_call_given_up_goes_to_the_next(hub: Restarted) -> None:
    waiting = [asyncio.ensure_future(hub.calls["cluster.place"](WANT, PEER)) for _ in range(3)]
    await soon(*waiting)
    hub.join("left")  # it holds one box more
    waiting[0].cancel()
    waiting[1].cancel()
    await soon(*waiting)
    assert waiting[2].result().node == "left" and hub.scheduler.nodes["left"].tickets == 1


async def test_a_drained_node_that_is_away_can_be_undrained(hub: Restarted) -> None:
    await hub.calls["cluster.drain"](Drain(node="right", on=False), PEER)
    hub.join("right")
    assert (await hub.states())["right"] == "up"


def test_nodes_that_left_and_those_of_a_hub_long_gone_are_not_waited_for(tmp_path: Path) -> None:
    async def known(path: Path) -> dict[str, bytes]:
        return Roster(path).missing

    async def before(path: Path) -> None:
        roster = Roster(path)
        for name in ("left", "right"):
            roster.joined(name, name.encode())
        roster.left("left")

    path = tmp_path / "nodes"
    asyncio.run(before(path))
    assert asyncio.run(known(path)) == {"right": b"right"}
    long_ago = time.time() - FORGET_S - 1
    os.utime(path, (long_ago, long_ago))
    assert asyncio.run(known(path)) == {}
    path.write_text("no roster")
    assert asyncio.run(known(path)) == {}


def _fields(want: Want) -> dict[str, Any]:
    return {name: getattr(want, name) for name in want.__struct_fields__}
