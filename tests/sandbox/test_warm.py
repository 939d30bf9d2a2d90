"""Warm pools: boxes stand ready, are refilled, given up first, and never lost."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.errors import HostError, UsageError
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.node.node_config import PoolSpec
from rockroll.sandbox.node.shelf import GIVEN_UP_PAUSE_S, LONGEST_PAUSE_S, REFILL_AFTER_S, Shelf
from rockroll.sandbox.node.warm import Warm, kind

# -- one pool's state, alone


def filled(size: int, idle: str | None = "1m") -> Shelf:
    shelf = Shelf(PoolSpec(size=size, idle=idle), 0.0)
    for number in range(shelf.wanted(0.0)):
        shelf.begin()
        assert shelf.made(f"b{number}")
    return shelf


def test_a_pool_wants_as_many_as_are_missing() -> None:
    shelf = Shelf(PoolSpec(size=3), 0.0)
    assert shelf.wanted(0.0) == 3
    shelf.begin()
    assert shelf.wanted(0.0) == 2
    shelf.made("a")
    assert shelf.wanted(0.0) == 2
    assert filled(3).wanted(0.0) == 0


def test_what_is_taken_is_made_again_and_counted() -> None:
    shelf = filled(2)
    assert (shelf.take(1.0), shelf.take(1.0), shelf.take(1.0)) == ("b0", "b1", None)
    assert (shelf.wanted(1.0 + REFILL_AFTER_S), shelf.taken, shelf.missed) == (2, 2, 1)


def test_the_first_command_of_a_box_goes_before_the_making_of_the_next() -> None:
    shelf = filled(3)
    shelf.take(1.0)
    assert (shelf.wanted(1.0), shelf.next_look(1.0)) == (0, pytest.approx(REFILL_AFTER_S))
    shelf.take(1.05)
    assert shelf.wanted(1.0 + REFILL_AFTER_S) == 2, "one that is taken every moment is refilled all the same"


def test_a_failed_start_pauses_the_pool_longer_each_time_and_then_one_box_tries() -> None:
    shelf, now, pauses = Shelf(PoolSpec(size=5), 0.0), 0.0, []
    for _ in range(10):
        assert shelf.wanted(now) >= 1
        shelf.begin()
        shelf.failed("no image", now)
        assert shelf.wanted(now) == 0
        pause = shelf.next_look(now)
        assert pause is not None
        pauses.append(pause)
        now += pause
        assert shelf.wanted(now) == 1, "one tries for all"
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0] and pauses[-1] == LONGEST_PAUSE_S
    shelf.begin()
    shelf.made("a")
    assert (shelf.wanted(now), shelf.fault) == (4, None)


def test_a_box_that_made_room_is_not_made_again_at_once() -> None:
    shelf = filled(2)
    assert shelf.give_up(10.0) == "b1"
    assert shelf.wanted(10.0) == 0
    assert shelf.wanted(10.0 + GIVEN_UP_PAUSE_S) == 1
    shelf.room()
    assert shelf.wanted(10.0) == 1, "another box has gone"


def test_a_pool_that_nobody_uses_falls_asleep_and_wakes_up_when_asked() -> None:
    shelf = filled(2)
    assert shelf.look(59.0) == [] and shelf.next_look(59.0) == 1.0
    assert shelf.look(60.0) == ["b0", "b1"]
    assert (shelf.wanted(61.0), shelf.next_look(61.0)) == (0, None)
    assert shelf.take(90.0) is None
    assert shelf.wanted(90.0) == 2


def test_a_smaller_pool_gives_back_what_is_too_much() -> None:
    shelf = filled(5)
    assert len(shelf.change(PoolSpec(size=2), 1.0)) == 3
    assert shelf.wanted(1.0) == 0


@given(st.lists(st.sampled_from(["start", "made", "failed", "take", "gone", "give", "room", "tick"]), max_size=80))
def test_whatever_happens_no_box_is_counted_twice_and_none_too_many_stand_ready(events: list[str]) -> None:
    shelf, now, ids = Shelf(PoolSpec(size=3, idle="1m"), 0.0), 0.0, itertools.count()
    for event in events:
        if event == "start" and shelf.wanted(now):
            shelf.begin()
        elif event == "made" and shelf.making:
            shelf.made(str(next(ids)))
        elif event == "failed" and shelf.making:
            shelf.failed("x", now)
        elif event == "take":
            shelf.take(now)
        elif event == "gone" and shelf.ready:
            shelf.gone(shelf.ready[0])
        elif event == "give":
            shelf.give_up(now)
        elif event == "room":
            shelf.room()
        elif event == "tick":
            now += 7
            shelf.look(now)
        assert shelf.making >= 0 and len(shelf.ready) <= 3
        assert len(shelf.ready) + shelf.making + shelf.wanted(now) <= 3 or shelf.wanted(now) == 0


# -- the pools of a node, with boxes that cost nothing


@dataclass(eq=False)
class Box:
    id: str
    config: SandboxConfig


@dataclass
class Maker:
    made: list[Box] = field(default_factory=list)
    removed: list[Box] = field(default_factory=list)
    unusable: set[str] = field(default_factory=set)
    refuse: str | None = None
    hold: asyncio.Event | None = None

    def warm(self) -> Warm[Box]:
        return Warm(self.make, self.remove, self.usable)

    async def make(self, config: SandboxConfig) -> Box:
        await asyncio.sleep(0)
        if self.hold:
            await self.hold.wait()
        if self.refuse:
            raise HostError(self.refuse)
        box = Box(f"b{len(self.made)}", config)
        self.made.append(box)
        return box

    async def remove(self, box: Box) -> None:
        await asyncio.sleep(0)
        self.removed.append(box)

    async def usable(self, box: Box) -> bool:
        await asyncio.sleep(0)
        return box.id not in self.unusable


SMALL = {"memory": "64m"}


async def test_a_box_comes_from_the_pool_of_its_kind_and_the_pool_is_filled_again() -> None:
    maker = Maker()
    warm = maker.warm()
    warm.set("small", PoolSpec(size=2, config=SMALL), "detached")
    await warm.filled("small")
    mine = SandboxConfig(memory=64 << 20, name="mine", labels={"a": "b"}, ttl="1h")
    box = await warm.take(mine)
    assert box is maker.made[0]
    assert await warm.take(SandboxConfig()) is None, "another kind"
    assert (await warm.filled("small")).taken == 1
    assert len(maker.made) == 3 and not maker.removed
    await warm.close()
    assert {b.id for b in maker.removed} == {"b1", "b2"}


async def test_a_box_that_is_no_good_any_more_is_removed_and_the_next_one_given() -> None:
    maker = Maker(unusable={"b0"})
    warm = maker.warm()
    warm.set("a", PoolSpec(size=2), "detached")
    await warm.filled("a")
    box = await warm.take(SandboxConfig())
    assert box is not None and box.id == "b1"
    await warm.close()
    assert "b0" in {b.id for b in maker.removed}


async def test_one_that_dies_on_the_shelf_is_removed_and_replaced() -> None:
    maker = Maker()
    warm = maker.warm()
    warm.set("a", PoolSpec(size=1), "detached")
    await warm.filled("a")
    warm.died("b0")
    warm.died("unknown")
    await warm.filled("a")
    assert [b.id for b in warm.boxes] == ["b1"]
    await warm.close()
    assert sorted(b.id for b in maker.removed) == ["b0", "b1"]


async def test_the_fullest_pool_gives_up_a_box_when_room_is_needed() -> None:
    maker = Maker()
    warm = maker.warm()
    warm.set("a", PoolSpec(size=1), "detached")
    warm.set("b", PoolSpec(size=3, config=SMALL), "detached")
    await warm.filled("a")
    await warm.filled("b")
    assert await warm.give_up()
    assert maker.removed[0].config.memory_bytes == 64 << 20
    assert [await warm.give_up() for _ in range(4)] == [True, True, True, False]
    await warm.close()
    assert len(maker.removed) == len(maker.made) == 4, "nothing was made again in their place"


async def test_why_a_pool_cannot_be_filled_is_told() -> None:
    maker = Maker(refuse="no image")
    warm = maker.warm()
    warm.set("a", PoolSpec(size=2), "detached")
    assert (await warm.filled("a")).fault == "no image"
    await warm.close()


async def test_a_pool_ends_with_its_connection_while_boxes_are_being_made() -> None:
    maker = Maker(hold=asyncio.Event())
    warm = maker.warm()
    warm.set("a", PoolSpec(size=3), "peer-1")
    await asyncio.sleep(0)
    warm.owner_gone("peer-2")
    assert warm.list()[0].making == 3
    warm.owner_gone("peer-1")
    await warm.close()
    assert warm.list() == [] and maker.made == []


async def test_pools_of_one_kind_or_with_a_name_of_the_file_are_refused() -> None:
    warm = Maker().warm()
    warm.follow({"file": PoolSpec(size=1)})
    with pytest.raises(UsageError, match="pool file has boxes of the same kind"):
        warm.set("other", PoolSpec(size=1, config={"memory": "512m"}), "detached")
    with pytest.raises(UsageError, match=r"node\.yaml has one of this name"):
        warm.set("file", PoolSpec(size=1), "detached")
    with pytest.raises(UsageError, match=r"it is in node\.yaml"):
        warm.delete("file")
    with pytest.raises(UsageError, match="no pool 'none'; there are: file"):
        warm.delete("none")
    with pytest.raises(UsageError, match="did you mean memory"):
        warm.set("bad", PoolSpec(size=1, config={"memroy": 1}), "detached")
    warm.follow({})
    assert warm.list() == []
    await warm.close()


async def test_whoever_waits_for_a_pool_that_ends_is_told() -> None:
    warm = Maker(hold=asyncio.Event()).warm()
    warm.set("a", PoolSpec(size=1), "detached")
    waiting = asyncio.create_task(warm.filled("a"))
    await asyncio.sleep(0)
    warm.delete("a")
    with pytest.raises(UsageError, match="no pool 'a'"):
        await waiting
    await warm.close()


def test_the_kind_is_what_podman_is_asked_for_and_no_more() -> None:
    config = SandboxConfig(memory="1g", env={"A": "1", "B": "2"})
    same = SandboxConfig(memory=1 << 30, env={"B": "2", "A": "1"}, name="x", ttl=5, idle_ttl="1m", labels={"k": "v"})
    assert kind(config) == kind(same)
    for other in ({"memory": "2g"}, {"env": {}}, {"network": "open"}, {"user": "1000"}, {"mounts": ("/a:/b",)}):
        assert kind(SandboxConfig(**{"memory": "1g", "env": {"A": "1", "B": "2"}, **other})) != kind(config)  # type: ignore[arg-type]
