"""Creations go as fast as the host answers, owners in turn; nothing here needs a container or a real clock."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.sandbox.node.admission import Admission
from rockroll.sandbox.node.aimd import Aimd
from rockroll.sandbox.node.turns import Rank, Turns


class Host:
    """A host that starts `rate` boxes a second at most, and none in under `alone` seconds."""

    def __init__(self, alone: float, rate: float) -> None:
        self.alone, self.rate = alone, rate

    def latency(self, at_once: int) -> float:
        return max(self.alone, at_once / self.rate)

    def storm(self, aimd: Aimd, starts: int) -> None:
        done = 0
        while done < starts:
            at_once = aimd.limit
            for _ in range(at_once):
                aimd.done("start", self.latency(at_once), full=True)
            done += at_once


def test_it_settles_where_two_cores_are_busy_and_no_queue_grows() -> None:
    aimd = Aimd(2)
    aimd.done("start", 0.071, full=False)
    Host(0.071, 23).storm(aimd, 500)
    assert 3 <= aimd.limit <= 7


def test_a_larger_host_gets_more_at_once() -> None:
    aimd = Aimd(32)
    aimd.done("start", 0.071, full=False)
    Host(0.071, 400).storm(aimd, 2000)
    assert 40 <= aimd.limit <= 110


def test_slow_answers_shrink_it_to_one_a_core_and_no_further() -> None:
    aimd = Aimd(2)
    aimd.done("start", 0.07, full=True)
    for _ in range(100):
        aimd.done("start", 5.0, full=True)
    assert aimd.limit == 2


def test_it_grows_back_when_the_host_recovers() -> None:
    aimd = Aimd(4)
    aimd.done("start", 0.07, full=True)
    for _ in range(100):
        aimd.done("start", 5.0, full=True)
    for _ in range(100):
        aimd.done("start", 0.08, full=True)
    assert aimd.limit > 8


def test_it_does_not_grow_while_nobody_uses_it() -> None:
    aimd = Aimd(2)
    before = aimd.limit
    for _ in range(100):
        aimd.done("start", 0.07, full=False)
    assert aimd.limit == before


def test_a_host_that_is_slower_for_good_is_not_punished_for_ever() -> None:
    aimd = Aimd(2)
    aimd.done("start", 0.07, full=False)
    Host(0.2, 10).storm(aimd, 4000)
    assert aimd.limit >= 3


def test_a_quick_failure_says_nothing_about_load_and_a_slow_one_does() -> None:
    aimd = Aimd(8)
    before = aimd.limit
    aimd.done("start", 0.07, full=True)
    for _ in range(100):
        aimd.done("start", 0.001, full=True, ok=False)
    assert aimd.limit == before
    for _ in range(100):
        aimd.done("start", 60.0, full=True, ok=False)
    assert aimd.limit < before


def test_removals_are_not_measured_against_starts() -> None:
    aimd = Aimd(2)
    aimd.done("start", 0.01, full=True)
    for _ in range(100):
        aimd.done("remove", 0.1, full=True)
    assert aimd.limit > 2


def test_least_and_most_hold() -> None:
    aimd = Aimd(2, least=3, most=5)
    for _ in range(100):
        aimd.done("start", 0.07, full=True)
    assert aimd.limit == 5
    for _ in range(100):
        aimd.done("start", 7.0, full=True)
    assert aimd.limit == 3


@given(st.lists(st.tuples(st.floats(0, 1e4), st.booleans(), st.booleans())))
def test_whatever_the_host_answers_the_limit_stays_in_its_bounds(answers: list[tuple[float, bool, bool]]) -> None:
    aimd = Aimd(2)
    for took, full, ok in answers:
        aimd.done("start", took, full=full, ok=ok)
        assert 2 <= aimd.limit <= 32


def test_owners_alternate_however_much_one_of_them_asks() -> None:
    turns: Turns[str] = Turns()
    for number in range(100):
        turns.add("storm", f"s{number}")
    turns.add("person", "p0")
    turns.add("person", "p1")
    assert [turns.next() for _ in range(5)] == ["s0", "p0", "s1", "p1", "s2"]


def test_one_owners_removal_goes_before_its_creations_and_not_before_others() -> None:
    turns: Turns[str] = Turns()
    turns.add("a", "make")
    turns.add("b", "other")
    turns.add("a", "remove", "remove")
    assert [turns.next() for _ in range(3)] == ["remove", "other", "make"]


def test_background_work_goes_when_nobody_waits() -> None:
    turns: Turns[str] = Turns()
    turns.add("pool", "refill", "background")
    turns.add("person", "make")
    turns.add("person", "again")
    assert [turns.next() for _ in range(4)] == ["make", "again", "refill", None]


def test_a_caller_that_waits_no_longer_takes_no_turn() -> None:
    turns: Turns[str] = Turns()
    turns.add("a", "first")
    turns.add("a", "second")
    turns.drop("a", "first")
    turns.drop("a", "unknown")
    assert (turns.next(), turns.next(), len(turns)) == ("second", None, 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_nothing_is_lost_and_no_owner_waits_for_two_turns_of_another(asks: list[tuple[str, bool]]) -> None:
    turns: Turns[int] = Turns()
    owners = {}
    for number, (owner, removal) in enumerate(asks):
        turns.add(owner, number, "remove" if removal else "create")
        owners[number] = owner
    order = [turns.next() for _ in asks]
    assert sorted(filter(lambda n: n is not None, order)) == list(range(len(asks)))  # type: ignore[type-var]
    left = [owners[number] for number in order if number is not None]
    for at, owner in enumerate(left[:-1]):
        others = {other for other in left[at + 1 :] if other != owner}
        assert not (others and left[at + 1] == owner), "an owner went twice while another waited"


async def test_only_as_many_are_under_way_as_the_limit_says() -> None:
    admission = Admission(Aimd(2, least=3, most=3))
    under_way, most = 0, 0

    async def work() -> None:
        nonlocal under_way, most
        async with admission.turn("a"):
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1

    await asyncio.gather(*(work() for _ in range(50)))
    assert (most, admission.running, admission.waiting()) == (3, 0, {})


async def test_refills_leave_half_of_the_places_to_people() -> None:
    admission = Admission(Aimd(4, least=4, most=4))
    over = asyncio.Event()

    async def work(rank: Rank) -> None:
        async with admission.turn("a", rank):
            await over.wait()

    refills = [asyncio.create_task(work("background")) for _ in range(4)]
    await asyncio.sleep(0)
    assert admission.running == 2
    person = asyncio.create_task(work("create"))
    await asyncio.sleep(0)
    assert admission.running == 3
    over.set()
    await asyncio.gather(*refills, person)
    assert admission.running == 0


async def test_cancelled_callers_give_their_places_up_at_whatever_moment() -> None:
    admission = Admission(Aimd(1, least=1, most=1))
    held = asyncio.Event()

    async def hold() -> None:
        async with admission.turn("a"):
            await held.wait()

    first = asyncio.create_task(hold())
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(hold()) for _ in range(3)]
    await asyncio.sleep(0)
    assert admission.waiting() == {"a": 3}
    waiting[0].cancel()
    await asyncio.sleep(0)
    assert admission.waiting() == {"a": 2}
    first.cancel()
    waiting[1].cancel()  # in the moment in which it may be let in
    await asyncio.gather(first, *waiting[:2], return_exceptions=True)
    held.set()
    await waiting[2]
    assert (admission.running, admission.waiting()) == (0, {})


async def test_an_error_in_the_block_frees_the_place() -> None:
    admission = Admission(Aimd(1, least=1, most=1))
    for _ in range(3):
        with pytest.raises(KeyError):
            async with admission.turn("a"):
                raise KeyError
    assert admission.running == 0


async def test_random_cancellations_leave_no_place_taken() -> None:
    random.seed(7)
    admission = Admission(Aimd(2))

    async def work(owner: str) -> None:
        async with admission.turn(owner, random.choice(["create", "remove", "background"])):
            await asyncio.sleep(random.random() / 1000)

    tasks = [asyncio.create_task(work(random.choice("abc"))) for _ in range(300)]
    for task in random.sample(tasks, 150):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (admission.running, admission.waiting()) == (0, {})
