"""Requests go where their beginning is known, then where least is to do; a replica is not taken for dead while busy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rockroll.engine.api import Stats
from rockroll.engine.health import Health
from rockroll.engine.routing import BLOCK, Prefixes, Routes

A, B = list(range(3 * BLOCK)), list(range(1000, 1000 + 3 * BLOCK))


def stats(**changes: object) -> Stats:
    plain = {"running": 0, "waiting": 0, "slots": 64, "kv_use": 0.0, "progress": 0, "loading": False}
    return Stats(**(plain | changes))  # type: ignore[arg-type]


def routes(count: int) -> Routes:
    made = Routes()
    for replica in range(count):
        made.add(replica)
    return made


def send(made: Routes, ids: list[int]) -> int:
    replica = made.choose(ids)
    assert replica is not None
    made.begun(replica, ids)
    return replica


def test_unknown_prompts_go_round_by_load() -> None:
    made = routes(3)
    assert [send(made, [n] * BLOCK) for n in range(6)] == [0, 1, 2, 0, 1, 2]


def test_the_next_turn_goes_where_the_answer_was_made() -> None:
    made = routes(2)
    first = send(made, A)
    second = send(made, B)
    assert {first, second} == {0, 1}
    answer = [7] * BLOCK
    made.ended(first, A, answer)
    made.ended(second, B, answer)
    assert made.choose(B + answer + [3]) == second
    assert made.choose(A + answer + [3]) == first


def test_the_longest_beginning_counts_not_the_last() -> None:
    known = Prefixes()
    known.add(0, A)
    known.add(1, A[: 2 * BLOCK] + B)
    assert known.shared(A) == {0: 3 * BLOCK, 1: 2 * BLOCK}
    assert known.shared(A[: BLOCK - 1]) == {} and known.shared(B) == {}


def test_a_shared_beginning_does_not_draw_every_request_to_one_replica() -> None:
    made = routes(2)
    sent = [send(made, A) for _ in range(40)]
    assert 14 <= sent.count(0) <= 26


def test_a_replica_that_is_full_gets_nothing_and_none_is_chosen_where_all_are() -> None:
    made = routes(2)
    made.reported(0, stats(slots=1))
    made.reported(1, stats(slots=2))
    assert [made.choose(A) is not None and send(made, A) for _ in range(3)] == [0, 1, 1]
    assert made.choose(A) is None
    made.ended(1, A, [])
    assert made.choose(B) == 1


def test_a_full_memory_counts_before_the_slots() -> None:
    made = routes(2)
    for n in range(6):
        send(made, [n] * BLOCK)
    full = stats(running=3, waiting=1, slots=64, kv_use=0.99)
    made.reported(0, full)
    made.reported(1, full)
    assert made.choose(A) is None
    made.reported(1, stats(running=3, waiting=1, slots=64, kv_use=0.5))
    assert made.choose(A) == 1


def test_a_replica_that_preempts_gets_nothing_until_none_waits() -> None:
    """What a preempted request gave back looks like room: the next one would be let in, and preempt again."""
    made = routes(2)
    for n in range(6):
        send(made, [n] * BLOCK)
    for replica in (0, 1):
        made.reported(replica, stats(running=3, kv_use=0.9))
        made.reported(replica, stats(running=2, waiting=1, kv_use=0.6, preemptions=1))
        made.reported(replica, stats(running=2, waiting=1, kv_use=0.7, preemptions=1))
    assert made.choose(A) is None
    made.reported(0, stats(running=3, kv_use=0.7, preemptions=1))
    assert made.choose(A) == 0
    made.reported(0, stats(running=3, waiting=1, kv_use=0.7, preemptions=1))
    assert made.choose(A) == 0, "it waits for its turn, not for memory"


def test_one_replica_is_always_chosen_and_nothing_is_recorded() -> None:
    made = routes(1)
    made.reported(0, stats(slots=1))
    assert [send(made, A) for _ in range(3)] == [0, 0, 0]
    assert len(made._prefixes) == 0


def test_a_replica_that_is_gone_is_forgotten_with_what_it_knew() -> None:
    made = routes(2)
    assert send(made, A) == 0
    made.remove(0)
    assert made.choose(A) == 1
    made.ended(0, A, [1])
    made.add(0)
    assert made._prefixes.shared(A) == {} and made.under_way(0) == 0
    made.remove(0)
    made.remove(1)
    assert made.choose(A) is None


def test_new_weights_forget_what_old_ones_computed() -> None:
    made = routes(2)
    send(made, A)
    made.weights_changed()
    assert made._prefixes.shared(A) == {}


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), max_size=4 * BLOCK)), max_size=30))
def test_the_record_is_bounded_and_never_longer_than_what_was_sent(sent: list[tuple[int, list[int]]]) -> None:
    known = Prefixes(most=5)
    for replica, ids in sent:
        known.add(replica, ids)
        assert len(known) <= 5
        assert all(length <= len(ids) for length in known.shared(ids).values())


@given(st.lists(st.integers(0, 9), min_size=1, max_size=200))
def test_no_replica_has_much_more_to_do_than_another(tasks: list[int]) -> None:
    made = routes(3)
    for task in tasks:
        send(made, [task] * BLOCK)
        loads = [made.under_way(replica) for replica in made.replicas]
        assert max(loads) <= min(loads) * 3 // 2 + 5


def test_a_replica_that_starts_has_all_the_time() -> None:
    assert Health(silent_s=60).judge(10_000) == ""


def test_silence_is_death() -> None:
    health = Health(silent_s=60)
    assert health.heard(100, stats()) == ""
    assert health.judge(159) == ""
    assert health.judge(160) == "has said nothing for 60 s"


def test_pulses_without_a_step_are_death_only_where_there_is_work_and_no_delivery() -> None:
    health = Health(stuck_s=300)
    for now in range(0, 1000, 10):
        assert health.heard(now, stats(progress=4)) == "", "idle"
    for now in range(1000, 2000, 10):
        assert health.heard(now, stats(running=3, progress=4, loading=True)) == "", "it takes new weights"
    for now in range(2000, 2290, 10):
        assert health.heard(now, stats(running=3, progress=4)) == "", "a long step"
    assert health.heard(2290, stats(running=3, progress=4)) == "has requests and has done no step for 300 s"
    assert health.heard(2300, stats(running=3, progress=5)) == "", "it got on"


def test_weights_that_never_arrive_are_death() -> None:
    health = Health(loading_s=600)
    for now in range(0, 590, 10):
        assert health.heard(now, stats(loading=True)) == ""
    assert health.heard(590, stats()) == "", "they have arrived"
    for now in range(600, 1200, 10):
        assert health.heard(now, stats(running=3, loading=True)) == "", "the next ones, on a clock of their own"
    assert health.heard(1200, stats(running=3, loading=True)) == "has been taking new weights for 600 s"
