"""Staleness is bounded before work starts, whatever finishes when; nothing waits for ever, no slot is lost."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rockroll.rollout.admission import Admission, OnStale, Position, Taken


def take(admission: Admission) -> Taken:
    taken = admission.take()
    assert taken is not None
    return taken


def finish(admission: Admission, *ids: int) -> None:
    for id in ids:
        admission.finish(id)


def test_without_staleness_a_batch_is_sampled_trained_and_only_then_is_the_next_one_admitted():
    admission = Admission(2)
    assert admission.admit() == [0, 1] and admission.admit() == []
    finish(admission, 1)
    assert admission.take() is None
    finish(admission, 0)
    assert take(admission) == Taken([0, 1], [])
    assert admission.admit() == [], "weights that are being replaced would sample it"
    admission.stepped(1)
    assert admission.admit() == [2, 3]


def test_with_staleness_the_next_batch_is_sampled_while_one_is_trained():
    admission = Admission(2, 1)
    assert admission.admit() == [0, 1, 2, 3]
    finish(admission, 3, 0)
    assert take(admission) == Taken([0, 3], [])
    finish(admission, 1)
    assert admission.take() is None, "one batch is trained at a time"
    admission.stepped(1)
    assert admission.admit() == [4, 5]


def test_a_straggler_that_would_be_too_stale_next_time_is_waited_for():
    admission = Admission(2, 1)
    admission.admit()
    finish(admission, 0, 1)
    take(admission)
    admission.stepped(1)
    admission.admit()
    finish(admission, 4, 5, 2)
    assert admission.take() is None, "first-done would train 4 and 5, and 3 at staleness 2"
    finish(admission, 3)
    assert take(admission) == Taken([2, 3], [])


def test_or_it_is_cancelled():
    admission = Admission(2, 1, on_stale="drop")
    admission.admit()
    finish(admission, 0, 1)
    take(admission)
    admission.stepped(1)
    admission.admit()
    finish(admission, 4, 2)
    assert take(admission) == Taken([2, 4], [3])
    admission.stepped(2)
    assert len(admission.admit()) == 3, "what was cancelled gave its slot back"


def test_a_deadline_two_batches_away_is_minded_now():
    admission = Admission(2, 2)
    assert len(admission.admit()) == 6
    finish(admission, 0, 1)
    take(admission)
    admission.stepped(1)
    assert admission.admit() == [6, 7]
    finish(admission, 6, 7)
    assert admission.take() is None, "2, 3, 4, 5 must be trained by version 2: two of them now"
    finish(admission, 5, 4)
    assert take(admission) == Taken([4, 5], [])


def test_groups_started_beyond_need_are_cancelled_when_the_batch_is_full():
    admission = Admission(2, extra=1)
    assert admission.admit() == [0, 1, 2]
    finish(admission, 2, 0)
    assert take(admission) == Taken([0, 2], [1])


def test_a_discarded_group_gives_its_slot_back_at_once():
    admission = Admission(2)
    admission.admit()
    admission.finish(0)
    admission.discard(0)
    assert admission.admit() == [2]
    with pytest.raises(ValueError, match="group 0 holds no slot"):
        admission.discard(0)


def test_a_run_goes_on_with_what_was_admitted_and_not_trained():
    again = Admission(2, 1, version=1, start=Position(4, [0, 2]))
    assert again.admit() == [0, 2, 4, 5]


def test_what_is_kept_goes_on_with_its_version_and_comes_in_time():
    again = Admission(2, 1, version=3, start=Position(9, held={5: 2, 6: 3, 7: 3}))
    assert again.running == [5, 6, 7] and again.admit() == [9]
    finish(again, 6, 7)
    assert again.take() is None, "5 is of version 2 and must be in this batch"
    finish(again, 5)
    assert take(again) == Taken([5, 6], [])


def test_what_is_kept_and_could_not_be_trained_in_time_is_begun_anew():
    again = Admission(1, 1, version=3, start=Position(9, held={4: 1, 5: 2, 6: 2, 7: 3}))
    assert again.running == [5, 7], "4 is too old, and there is one batch for 5 and 6"
    assert again.admit() == []
    finish(again, 5)
    take(again)
    again.stepped(4)
    assert again.admit() == [4]


def test_a_batch_that_was_taken_is_the_next_one_and_holds_its_slots_until_then():
    again = Admission(2, version=3, batches=2, start=Position(9, taken=[[6, 5]]))
    assert again.admit() == []
    taken = take(again)
    assert taken.groups == [5, 6] and taken.again
    again.stepped(4)
    assert again.admit() == [9, 10]


def test_in_order_a_batch_is_the_lowest_groups_whichever_are_done_first():
    admission = Admission(2, 1, in_order=True)
    admission.admit()
    finish(admission, 3, 1, 2)
    assert admission.take() is None
    finish(admission, 0)
    assert take(admission) == Taken([0, 1], [])


def test_the_last_batches_start_no_more_than_they_need():
    admission = Admission(2, 1, batches=1, extra=1)
    assert admission.admit() == [0, 1, 2]


def test_a_step_makes_the_next_version():
    with pytest.raises(ValueError, match="got 2 after 0"):
        Admission(1).stepped(2)


@settings(max_examples=300, deadline=None)
@given(
    batch=st.integers(1, 5),
    bound=st.integers(0, 4),
    extra=st.integers(0, 3),
    on_stale=st.sampled_from(["wait", "drop"]),
    filtered=st.floats(0, 0.5),
    seed=st.integers(0, 2**32),
)
def test_staleness_never_passes_its_bound_and_nothing_stands_still(
    batch: int, bound: int, extra: int, on_stale: OnStale, filtered: float, seed: int
):
    """Groups finish in any order, some are filtered, a step takes any time: every batch is whole, none is stale."""
    rng = random.Random(seed)
    admission = Admission(batch, bound, extra=extra, on_stale=on_stale)
    born: dict[int, int] = {}
    running: set[int] = set()
    ended: set[int] = set()
    version, training = 0, False
    while version < 12:
        for id in admission.admit():
            born[id] = version
            running.add(id)
        assert admission.held >= admission.slots
        taken = admission.take()
        if taken:
            assert len(taken.groups) == batch and not training
            assert all(version - born[id] <= bound for id in taken.groups)
            assert len(taken.cancelled) <= (extra if on_stale == "wait" else bound * batch + extra)
            assert not ended.intersection(taken.groups + taken.cancelled)
            ended.update(taken.groups, taken.cancelled)
            running -= set(taken.cancelled)
            training = True
        elif training and (not running or rng.random() < 0.3):
            version, training = version + 1, False
            admission.stepped(version)
        else:
            assert running, "nothing runs, nothing is trained, and no batch is ready"
            # a long tail: old ones are the unlikeliest to finish
            id = rng.choices(sorted(running), [1 + k**3 for k in range(len(running))])[0]
            running.discard(id)
            if rng.random() < filtered:
                admission.discard(id)
                ended.add(id)
            else:
                admission.finish(id)


@settings(max_examples=120, deadline=None)
@given(
    batch=st.integers(1, 5),
    bound=st.integers(0, 4),
    extra=st.integers(0, 3),
    on_stale=st.sampled_from(["wait", "drop"]),
    in_order=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_run_that_is_killed_at_any_time_keeps_all_its_groups_their_bound_and_its_pace(
    batch: int, bound: int, extra: int, on_stale: OnStale, in_order: bool, seed: int
):
    if in_order:
        extra, on_stale = 0, "wait"
    rng = random.Random(seed)

    def begun(position: Position, version: int) -> Admission:
        return Admission(
            batch, bound, extra=extra, on_stale=on_stale, in_order=in_order, version=version, start=position
        )

    admission = begun(Position(), 0)
    born: dict[int, int] = {}
    running: set[int] = set()
    done: list[int] = []
    training: list[int] = []
    again: list[int] = []
    trained: list[int] = []
    cancelled: set[int] = set()
    version = 0
    while version < 10:
        for id in admission.admit():
            assert id not in born, "no group is begun again"
            born[id] = version
            running.add(id)
        if rng.random() < 0.1:
            held = {id: born[id] for id in [*running, *done]}
            again = training or again
            admission = begun(Position(max(born) + 1, held=held, taken=[again] if again else []), version)
            assert set(admission.running) == set(held), "all of them can still be trained in time"
            finish(admission, *done)
            training = []
            continue
        if taken := admission.take():
            assert len(taken.groups) == batch and all(version - born[id] <= bound for id in taken.groups)
            assert taken.again == bool(again) and (not again or taken.groups == again)
            training, again = taken.groups, []
            done = [id for id in done if id not in [*training, *taken.cancelled]]
            running -= set(taken.cancelled)
            cancelled |= set(taken.cancelled)
        elif training and (not running or rng.random() < 0.3):
            trained += training
            version, training = version + 1, []
            admission.stepped(version)
        else:
            assert running, "nothing runs, nothing is trained, and no batch is ready"
            id = rng.choices(sorted(running), [1 + k**3 for k in range(len(running))])[0]
            running.discard(id)
            done.append(id)
            admission.finish(id)
    assert len(set(trained)) == len(trained) and not cancelled & set(trained)
    assert set(born) == {*trained, *cancelled, *running, *done}
    if in_order:
        assert trained == sorted(trained)
