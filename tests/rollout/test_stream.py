"""Groups sampled ahead of the trainer: overlap, bound, filters, failures; nothing runs on after the end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from rockroll.errors import EnvError, HostError
from rockroll.rollout.admission import Admission, OnStale
from rockroll.rollout.filters import varied
from rockroll.rollout.group import GroupState
from rockroll.rollout.opened import Began, Ended, Opened, Whole
from rockroll.rollout.sample import Episode, Group, Sample
from rockroll.rollout.stream import Stream


class Bench:
    """Groups that end when the test says so."""

    def __init__(self) -> None:
        self.gates: dict[int, asyncio.Future[list[float]]] = {}
        self.cancelled: list[int] = []

    def stream(self, batch: int, bound: int = 0, *, keep: Any = None, extra: int = 0, on_stale: OnStale = "wait"):
        admission = Admission(batch, bound, extra=extra, on_stale=on_stale, batches=None)
        return Stream(admission, lambda id: GroupState(id, "t", id, 2), self._collect, keep or (lambda _: True))

    async def _collect(self, state: GroupState) -> Group:
        self.gates[state.id] = asyncio.get_running_loop().create_future()
        state.begin()
        try:
            rewards = await self.gates[state.id]
        except asyncio.CancelledError:
            self.cancelled.append(state.id)
            for index in state.running:
                state.cancelled(index, 5)
            raise
        for index, reward in enumerate(rewards):
            state.end(episode(state.id, index, reward))
        return state.result()

    async def _stubborn(self, state: GroupState) -> Group:
        """Completes although it is cancelled: its last episode had just ended."""
        try:
            return await self._collect(state)
        except asyncio.CancelledError:
            state = GroupState(state.id, "t", 0, 2)
            state.begin()
            for index in (0, 1):
                state.end(episode(state.id, index, 1.0))
            return state.result()

    async def end(self, *ids: int, rewards: tuple[float, float] = (0.0, 1.0)) -> None:
        await asyncio.sleep(0)
        for id in ids:
            self.gates[id].set_result(list(rewards))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    @property
    def open(self) -> set[int]:
        return {id for id, gate in self.gates.items() if not gate.done()}


def episode(group: int, index: int, reward: float) -> Episode:
    sample = Sample([1, 2, 3], [False, True, True], [0.0, -1.0, -1.0], [-1, 0, 0])
    return Episode(f"{group}-{index}", "t", 0, group, index, "ok", None, reward, [sample], 1, 0.1)


async def soon(work: Coroutine[Any, Any, list[Group]]) -> list[Group]:
    return await asyncio.wait_for(work, 5)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_without_staleness_nothing_is_sampled_while_a_batch_is_trained() -> None:
    bench = Bench()
    async with bench.stream(2) as stream:
        await bench.end(1, 0)
        assert [group.id for group in await soon(stream.take())] == [0, 1]
        await settled()
        assert not bench.open
        stream.stepped(1)
        await settled()
        assert bench.open == {2, 3}


async def test_with_staleness_the_next_batch_is_collected_meanwhile() -> None:
    bench = Bench()
    async with bench.stream(2, 1) as stream:
        await bench.end(1, 0, 3)
        assert [group.id for group in await soon(stream.take())] == [0, 1]
        await bench.end(2)  # during the training of 0 and 1
        stream.stepped(1)
        assert [group.id for group in await soon(stream.take())] == [2, 3]


async def test_a_group_that_teaches_nothing_is_replaced_at_once() -> None:
    bench = Bench()
    async with bench.stream(2, keep=varied) as stream:
        await bench.end(0, rewards=(1.0, 1.0))
        await settled()
        assert bench.open == {1, 2}
        await bench.end(1, 2)
        groups = await soon(stream.take())
    assert [group.id for group in groups] == [1, 2]
    assert groups[-1].discarded == {"filtered": 2} and groups[-1].wasted_tokens == 4


async def test_what_is_cancelled_for_want_of_time_is_booked() -> None:
    bench = Bench()
    async with bench.stream(1, extra=1) as stream:
        await bench.end(1)
        (group,) = await soon(stream.take())
        assert group.id == 1 and bench.cancelled == [0]
        assert group.discarded == {"cancelled": 2} and group.wasted_tokens == 10


async def test_a_group_that_completes_while_it_is_cancelled_is_booked_too() -> None:
    bench = Bench()
    stream = Stream(Admission(1, extra=1), lambda id: GroupState(id, "t", id, 2), bench._stubborn)
    async with stream:
        await bench.end(1)
        (group,) = await soon(stream.take())
        assert group.id == 1 and group.discarded == {"cancelled": 2} and group.wasted_tokens == 4


async def test_a_failure_is_raised_by_take_even_when_it_came_before() -> None:
    bench = Bench()
    with pytest.raises(EnvError, match="broken"):
        async with bench.stream(2) as stream:
            await settled()
            bench.gates[0].set_exception(EnvError("broken"))
            await settled()
            await soon(stream.take())
    assert bench.cancelled == [1]


async def test_its_end_cancels_and_awaits_whatever_runs() -> None:
    bench = Bench()
    async with bench.stream(2, 1) as stream:
        await bench.end(0, 1)
        await soon(stream.take())
        await settled()
    assert sorted(bench.cancelled) == [2, 3]
    assert asyncio.all_tasks() == {asyncio.current_task()}


def past(*episodes: Episode, whole: bool = False) -> Opened:
    """Group 0, of which these had ended when the run was killed."""
    found = Opened()
    found.add(Began(0, 0))
    for each in episodes:
        found.add(Ended(each))
    if whole:
        found.add(Whole(Group(0, "t", 0, [], 3), [0, 1]))
    return found


async def test_a_group_that_was_whole_is_trained_and_not_sampled_again() -> None:
    bench, noted = Bench(), []
    found = past(episode(0, 1, 1.0), episode(0, 0, 0.0), whole=True)
    admission = Admission(2, start=found.position)
    async with Stream(
        admission, lambda id: GroupState(id, "t", id, 2), bench._collect, past=found, note=noted.append
    ) as s:
        await settled()
        assert bench.open == {1}
        await bench.end(1)
        groups = await soon(s.take())
    assert [group.id for group in groups] == [0, 1] and [e.index for e in groups[0].episodes] == [0, 1]
    assert groups[0].wasted_tokens == 3
    assert [type(each).__name__ for each in noted] == ["Began", "Whole", "Taken"]


async def test_what_is_kept_of_another_seed_is_void_and_the_group_begun_anew() -> None:
    bench, noted = Bench(), []
    found = past(episode(0, 1, 1.0))
    admission = Admission(1, start=found.position)
    async with Stream(
        admission, lambda id: GroupState(id, "t", 9, 2), bench._collect, past=found, note=noted.append
    ) as s:
        await bench.end(0)
        (group,) = await soon(s.take())
    assert noted[0] == Began(0, 0) and group.discarded == {"ok": 1} and group.wasted_tokens == 2


async def test_an_end_gives_nothing_up() -> None:
    bench, noted = Bench(), []
    async with Stream(Admission(2), lambda id: GroupState(id, "t", id, 2), bench._collect, note=noted.append):
        await settled()
    assert sorted(bench.cancelled) == [0, 1] and noted == [Began(0, 0), Began(1, 0)]


@pytest.mark.parametrize("kind", [Whole, Began])
async def test_what_cannot_be_noted_ends_the_stream(kind: type) -> None:
    bench, noted = Bench(), []

    def full(record: Any) -> None:
        noted.append(record)
        if isinstance(record, kind) and len(noted) > 1:
            raise HostError("its disk is full")

    with pytest.raises(HostError, match="full"):
        async with Stream(Admission(2), lambda id: GroupState(id, "t", id, 2), bench._collect, note=full) as stream:
            await bench.end(0)
            await soon(stream.take())
    assert asyncio.all_tasks() == {asyncio.current_task()}
