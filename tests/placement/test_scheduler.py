"""What the scheduler of a cluster promises, and what it costs."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rockroll.errors import NoRoom
from rockroll.sandbox.cluster.presence import CLOSED_S, FORGET_S, OWNER_S, SUSPECT_S, Presence
from rockroll.sandbox.cluster.scheduler import Node, Policy, Scheduler
from rockroll.sandbox.cluster.wire import BoxRow, Load, Want

GB = 2**30
EASY = Load(room=10_000, limit=100, busy=0)


def want(owner: str = "me", cpus: float = 1, memory: int = GB, **more: object) -> Want:
    return Want(owner=owner, cpus=cpus, memory=memory, pids=100, image="base", **more)  # type: ignore[arg-type]


def cluster(policy: Policy = "spread", nodes: int = 3, ratio: float = 4.0, memory: int = 64 * GB) -> Scheduler:
    made = Scheduler(policy, ratio)
    for number in range(nodes):
        made.join(f"n{number}", 8, memory, 100_000, ["base"], EASY)
    return made


def row(id: str, of: Want) -> BoxRow:
    return BoxRow(
        id=id, name=id, account=of.owner, cpus=of.cpus, memory=of.memory, pids=of.pids, image=of.image
    )  # fmt: skip


def test_spread_fills_all_nodes_alike_and_pack_one_after_the_other() -> None:
    spread, pack = cluster("spread"), cluster("pack")
    assert sorted(spread.place(want())[0].name for _ in range(6)) == ["n0", "n0", "n1", "n1", "n2", "n2"]
    assert {pack.place(want())[0].name for _ in range(32)} == {"n0"}, "n0 holds 8 CPUs × 4"
    assert pack.place(want())[0].name == "n1"


def test_a_node_with_a_warm_box_goes_first_then_one_with_the_image() -> None:
    scheduler = cluster()
    scheduler.join("has image", 8, 64 * GB, 100_000, ["base", "rare"], EASY)
    rare = Want(owner="me", cpus=1, memory=GB, pids=1, image="rare", kind="k")
    assert {scheduler.place(rare)[0].name for _ in range(5)} == {"has image"}
    scheduler.say("n2", Load(room=10, limit=100, busy=0, warm={"k": 2}))
    assert [scheduler.place(rare)[0].name for _ in range(3)] == ["n2", "n2", "has image"]


def test_a_node_that_has_its_hands_full_of_starts_is_taken_after_the_others() -> None:
    scheduler = cluster(nodes=2)
    scheduler.say("n0", Load(room=10, limit=4, busy=9))
    assert [scheduler.place(want())[0].name for _ in range(3)] == ["n1"] * 3


def test_who_is_suspect_or_drained_or_has_refused_takes_none() -> None:
    scheduler = cluster()
    scheduler.mark("n0", "suspect")
    scheduler.mark("n1", "draining")
    assert scheduler.place(want())[0].name == "n2"
    with pytest.raises(NoRoom, match="n0 is suspect; n1 is draining; n2 has refused it"):
        scheduler.place(want(without=["n2"]))
    scheduler.mark("n0", "up")
    assert scheduler.place(want(without=["n2"]))[0].name == "n0"


def test_the_host_s_own_word_on_its_room_counts() -> None:
    scheduler = cluster(nodes=1)
    scheduler.say("n0", Load(room=2, limit=100, busy=0))
    scheduler.place(want())
    scheduler.place(want())
    with pytest.raises(NoRoom, match="n0's host has no room left"):
        scheduler.place(want())


def test_a_ticket_counts_until_it_is_settled_and_its_box_from_then_on() -> None:
    scheduler = cluster(nodes=1, ratio=1)
    tickets = [scheduler.place(want())[1] for _ in range(8)]
    with pytest.raises(NoRoom, match="n0 has 0 CPUs left"):
        scheduler.place(want())
    scheduler.settle(tickets[0])
    put_row = row("a", want())
    node, ticket = scheduler.place(want())
    scheduler.put(node.name, put_row)
    scheduler.settle(ticket)
    scheduler.settle(ticket)
    assert node.used[0] == 8
    scheduler.gone("a")
    assert node.used[0] == 7


def test_when_there_is_room_the_owner_with_the_least_is_next() -> None:
    scheduler = cluster(nodes=1, ratio=1)
    for number in range(6):
        scheduler.put("n0", row(f"greedy{number}", want("greedy")))
    for number in range(2):
        scheduler.put("n0", row(f"modest{number}", want("modest")))
    served: list[str] = []
    for owner in ("greedy", "greedy", "modest", "modest"):
        scheduler.ask(want(owner, wait=True), lambda _node, _ticket, owner=owner: served.append(owner))
    dropped = scheduler.ask(want("modest", wait=True), lambda _node, _ticket: served.append("dropped"))
    scheduler.drop(dropped)
    assert served == []
    for number in range(3):
        scheduler.gone(f"greedy{number}")
        scheduler.dispatch()
    assert served == ["modest", "modest", "greedy"]
    assert scheduler.waiting == 1


def test_a_node_that_joins_serves_who_waits_and_one_that_is_gone_takes_its_boxes_with_it() -> None:
    scheduler = Scheduler()
    served: list[Node] = []
    scheduler.ask(want(wait=True), lambda node, _ticket: served.append(node))
    scheduler.join("late", 8, 64 * GB, 100_000, [], EASY)
    scheduler.dispatch()
    assert [node.name for node in served] == ["late"]
    scheduler.put("late", row("a", want()))
    assert scheduler.where("a") == "late"
    scheduler.leave("late")
    assert scheduler.where("a") is None
    with pytest.raises(NoRoom, match="rockroll node --hub"):
        scheduler.place(want())


boxes = st.tuples(st.floats(0.1, 4), st.integers(1, 8), st.sampled_from(["a", "b", "c"]), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(boxes, max_size=120), st.sampled_from(["spread", "pack"]))
def test_no_node_is_granted_more_than_it_may_and_nothing_is_lost_of_the_count(asked: list, policy: Policy) -> None:
    scheduler = cluster(policy, nodes=2, ratio=2, memory=16 * GB)
    alive: list[tuple[str, float]] = []
    for number, (cpus, memory, owner, ends) in enumerate(asked):
        one = want(owner, cpus, memory * GB)
        try:
            node, ticket = scheduler.place(one)
        except NoRoom:
            continue
        scheduler.settle(ticket)
        scheduler.put(node.name, row(str(number), one))
        alive.append((str(number), cpus))
        for each in scheduler.nodes.values():
            assert each.used[0] <= each.most[0] * (1 + 1e-6)
            assert each.used[1] <= each.most[1]
        if ends:
            id, _ = alive.pop(0)
            scheduler.gone(id)
    held = sum(cpus for _, cpus in alive)
    assert sum(node.used[0] for node in scheduler.nodes.values()) == pytest.approx(held, abs=1e-6)


def test_a_decision_at_10_000_alive_on_200_nodes_takes_under_5_ms() -> None:
    scheduler = Scheduler("spread", 64)
    for number in range(200):
        scheduler.join(f"n{number}", 16, 256 * GB, 1_000_000, ["base"], EASY)
    rng = random.Random(0)
    for number in range(10_000):
        scheduler.put(f"n{rng.randrange(200)}", row(str(number), want(f"owner{number % 20}")))
    began = time.process_time()
    for number in range(200):
        node, ticket = scheduler.place(want(f"owner{number % 20}"))
        scheduler.put(node.name, row(f"new{number}", want(f"owner{number % 20}")))
        scheduler.settle(ticket)
    assert (time.process_time() - began) / 200 < 0.005


def test_a_silent_node_is_suspect_and_back_when_it_is_heard() -> None:
    presence = Presence()
    assert presence.node(b"n", 100, heard=99) == "there"
    assert presence.node(b"n", 100 + SUSPECT_S, heard=99) == "suspect"
    assert presence.node(b"n", 110, heard=109.5) == "there"
    assert presence.node(b"n", 110 + FORGET_S, heard=109.5) == "forgotten"


def test_a_node_whose_connection_was_reset_has_a_moment_to_return() -> None:
    presence = Presence()
    presence.cut(b"n", 100)
    assert presence.node(b"n", 101, heard=99.8) == "there"
    assert presence.node(b"n", 102.5, heard=99.8) == "suspect"
    assert presence.node(b"n", 103, heard=102.9) == "there"


def test_a_client_that_was_killed_is_gone_soon_and_one_that_is_cut_off_is_waited_for() -> None:
    presence = Presence()
    presence.cut(b"killed", 100)
    presence.cut(b"reset", 100)
    presence.cut(b"killed", 104)
    heard = {b"killed": 99.9, b"silent": 98.0, b"reset": 100.5}
    assert presence.gone(heard, 102) == []
    heard[b"reset"] = 106
    assert presence.gone(heard, 101 + CLOSED_S) == [b"killed"]
    presence.bury(b"killed")
    del heard[b"killed"]
    heard[b"reset"] = 98 + OWNER_S
    assert presence.gone(heard, 99 + OWNER_S) == [b"silent"]


def test_a_client_that_a_node_tells_of_has_time_to_be_heard() -> None:
    presence = Presence()
    presence.expect(b"a", 100)
    presence.expect(b"b", 100)
    assert presence.gone({b"a": 110.0}, 110) == []
    assert presence.gone({b"a": 101 + OWNER_S}, 101 + OWNER_S) == [b"b"]
