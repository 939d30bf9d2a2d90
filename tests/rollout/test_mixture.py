"""Mixtures are exact at any time and depend on the seed alone; curricula follow what was measured, also over a stop."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.errors import HostError, RockrollError
from rockroll.rollout.config import CurriculumConfig, RolloutConfig, TaskConfig
from rockroll.rollout.curriculum_log import CurriculumLog
from rockroll.rollout.domain import DomainConfig, HeldOut, check, held_out
from rockroll.rollout.filters import IN_A_ROW, Filter
from rockroll.rollout.mixture import Arm, Drawing, Folded, Mixture, Record, Turns
from rockroll.rollout.sample import Episode, Group


def domain(name: str, weight: float = 1.0, levels: int = 0) -> DomainConfig:
    return DomainConfig(name=name, env="x:Y", weight=weight, levels=tuple({"size": n} for n in range(levels)))


THREE = [domain("a", 5), domain("b", 2), domain("c", 1)]


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=7), seed=st.integers(0, 2**31), n=st.integers(1, 300))
def test_after_any_number_of_draws_each_task_was_drawn_within_one_of_its_share(
    weights: list[int], seed: int, n: int
) -> None:
    part = [weight / sum(weights) for weight in weights]
    turns = Turns(seed, len(part))
    counts = [0] * len(part)
    for drawn in range(1, n + 1):
        counts[turns.draw(part)] += 1
        assert all(abs(count - drawn * share) < 1 for count, share in zip(counts, part, strict=True))


def test_a_number_s_task_is_the_seed_s_whatever_was_asked_before_and_differs_by_seed() -> None:
    whole = [Mixture(THREE, 7).arm(number) for number in range(64)]
    backwards = Mixture(THREE, 7)
    assert [backwards.arm(number) for number in reversed(range(64))] == whole[::-1]
    assert Counter(arm.task for arm in whole) == {"a": 40, "b": 16, "c": 8}
    assert [Mixture(THREE, 8).arm(number) for number in range(64)] != whole


def test_one_task_alone_is_every_group() -> None:
    mixture = Mixture([TaskConfig(env="x:Y")], 1)
    assert {mixture.arm(number) for number in range(9)} == {Arm("x:Y")}


def test_levels_share_their_task_s_part_equally() -> None:
    mixture = Mixture([domain("a", 1, levels=3), domain("b", 1)], 3)
    counts = Counter(mixture.arm(number) for number in range(60))
    assert counts == {Arm("a", 0): 10, Arm("a", 1): 10, Arm("a", 2): 10, Arm("b", 0): 30}


def test_a_benched_task_s_groups_are_given_to_the_others_and_the_last_one_is_not_benched() -> None:
    mixture = Mixture(THREE, 7)
    first = [mixture.arm(number) for number in range(30)]
    assert mixture.bench("a", "broken")
    after = [mixture.arm(number) for number in range(30)]
    assert {arm.task for arm in after} == {"b", "c"}
    assert all(now == then for now, then in zip(after, first, strict=True) if then.task != "a")
    assert after == [mixture.arm(number) for number in range(30)]
    assert mixture.bench("b", "broken") and not mixture.bench("c", "broken")
    assert mixture.arm(31) == Arm("c")


CURRICULUM = CurriculumConfig(window=(0.2, 0.8), boost=4, memory=2)


def measure(mixture: Mixture, numbers: range, rates: dict[int, float]) -> None:
    """Each group of these numbers is complete, with the pass rate of its level; the last first."""
    for number in reversed(numbers):
        arm = mixture.arm(number)
        mixture.measure(number, arm, rates[arm.level], True)


def test_levels_inside_the_window_are_drawn_more_often_and_the_task_keeps_its_share() -> None:
    tasks = [domain("a", 1, levels=3), domain("b", 1)]
    mixture = Mixture(tasks, 5, batch=16, curriculum=CURRICULUM)
    rates = {0: 1.0, 1: 0.5, 2: 0.0}
    measure(mixture, range(16), {**rates})
    later = Counter(mixture.arm(number) for number in range(16, 16 + 120))
    assert sum(n for arm, n in later.items() if arm.task == "a") == pytest.approx(60, abs=1)
    assert [later[Arm("a", level)] for level in range(3)] == pytest.approx([10, 40, 10], abs=2)


def test_tasks_compete_where_they_are_asked_to() -> None:
    curriculum = CurriculumConfig(window=(0.2, 0.8), boost=3, among="tasks")
    mixture = Mixture([domain("easy"), domain("right")], 5, batch=2, curriculum=curriculum)
    for number in range(2):
        arm = mixture.arm(number)
        mixture.measure(number, arm, {"easy": 1.0, "right": 0.4}[arm.task], True)
    later = Counter(mixture.arm(number).task for number in range(2, 82))
    assert later["right"] == pytest.approx(60, abs=2) and later["easy"] == pytest.approx(20, abs=2)


def test_what_is_measured_counts_with_the_next_batch_in_whatever_order_it_came() -> None:
    forwards, backwards = (Mixture([domain("a", levels=2)], 5, batch=4, curriculum=CURRICULUM) for _ in range(2))
    for mixture, order in ((forwards, [0, 1, 2, 3]), (backwards, [3, 1, 0, 2])):
        for number in order:
            mixture.measure(number, mixture.arm(number), number / 4, True)
            mixture.measure(number, mixture.arm(number), 1.0, True)  # counted once
    assert [forwards.arm(n) for n in range(40)] == [backwards.arm(n) for n in range(40)]
    assert forwards.rates == backwards.rates


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("killed_at", [1, 4, 7, 12])
def test_a_run_that_goes_on_draws_what_it_would_have_drawn(tmp_path: Path, killed_at: int, folded: bool) -> None:
    def mixture(log: CurriculumLog) -> Mixture:
        return Mixture(
            [domain("a", levels=3), domain("b")], 5, batch=4, curriculum=CURRICULUM, past=log.past, log=log.put
        )

    def go(mixture: Mixture, batches: range, log: CurriculumLog | None = None) -> list[Arm]:
        drawn = []
        for batch in batches:
            numbers = range(4 * batch, 4 * batch + 4)
            drawn += [mixture.arm(number) for number in numbers]
            measure(mixture, numbers[:-1], {0: 1.0, 1: batch / 16, 2: 0.0})
            if log is not None:  # a checkpoint, with groups that are open and others that are not in the rates yet
                log.fold(mixture.fold(4 * (batch // 2)))
            measure(mixture, numbers[-1:], {0: 1.0, 1: batch / 16, 2: 0.0})
        return drawn

    whole = go(mixture(CurriculumLog(tmp_path / "whole")), range(16))
    path = tmp_path / "curriculum.jsonl"
    before = CurriculumLog(path)
    go(mixture(before), range(killed_at), before if folded else None)
    before.close()
    with path.open("ab") as file:
        file.write(b'{"type":"measured","gro')  # killed in the middle of a record
    after = mixture(CurriculumLog(path))
    # from the checkpoint of half of it: what was measured since is known and not counted twice
    assert go(after, range(killed_at // 2, 16)) == whole[4 * (killed_at // 2) :]


def test_what_a_long_run_keeps_is_as_much_as_was_measured_since_its_checkpoint(tmp_path: Path) -> None:
    log = CurriculumLog(tmp_path / "curriculum.jsonl")
    mixture = Mixture([domain("a", levels=3)], 5, batch=4, curriculum=CURRICULUM, log=log.put)
    sizes: list[int] = []
    for step in range(100):
        measure(mixture, range(4 * step, 4 * step + 4), {0: 1.0, 1: 0.5, 2: 0.0})
        if step % 10 == 9:
            sizes.append((tmp_path / "curriculum.jsonl").stat().st_size)
            log.fold(mixture.fold(4 * step))  # the last batch is open still
    log.close()
    assert max(sizes) < 1.2 * sizes[0]
    (folded,) = CurriculumLog(tmp_path / "curriculum.jsonl").past
    assert isinstance(folded, Folded) and folded.measured == [396, 397, 398, 399]


def test_a_record_that_a_full_disk_refuses_leaves_the_others_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CurriculumLog(tmp_path / "c")
    record = Mixture([domain("a", levels=3)], 5, batch=4, curriculum=CURRICULUM).fold(0)
    log.put(record)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: write(file, data[:10]))
        with pytest.raises(HostError, match="its disk is full"):
            log.put(record)
    log.put(record)
    log.close()
    assert CurriculumLog(tmp_path / "c").past == [record, record]


def test_a_group_that_was_folded_is_not_measured_again() -> None:
    mixture = Mixture([domain("a", levels=3)], 5, batch=4, curriculum=CURRICULUM)
    measure(mixture, range(8), {0: 1.0, 1: 0.5, 2: 0.0})
    mixture.fold(8)
    before = dict(mixture.rates)
    measure(mixture, range(8), {0: 0.0, 1: 0.0, 2: 1.0})
    assert mixture.rates == before


@pytest.mark.parametrize("folded", [False, True])
def test_a_recipe_with_other_tasks_than_before_keeps_its_own_shares(folded: bool) -> None:
    past: list[Record] = [Drawing(4, {"a": [0.9, 0.1], "gone": [0.0]})]
    if folded:
        before = Mixture([domain("a", levels=2), domain("gone")], 5, batch=4, curriculum=CURRICULUM, past=past)
        before.arm(9)
        past = [before.fold(0)]
    mixture = Mixture([domain("a", levels=3)], 5, batch=4, curriculum=CURRICULUM, past=past)
    assert Counter(mixture.arm(number).level for number in range(30)) == {0: 10, 1: 10, 2: 10}


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"no record\n")
    with pytest.raises(HostError, match="which tasks were drawn"):
        CurriculumLog(tmp_path / "c")


def test_the_held_out_set_is_shared_by_weight_and_every_task_has_some() -> None:
    held = held_out([domain("a", 98), domain("b", 1, levels=2), domain("c", 1)], 20)
    assert Counter(each.task for each in held) == {"a": 19, "b": 1, "c": 1}
    assert held_out([domain("a", levels=2)], 3) == [HeldOut("a", 0, 0), HeldOut("a", 1, 1), HeldOut("a", 2, 0)]
    assert Counter(each.task for each in held_out(THREE, 16)) == {"a": 10, "b": 4, "c": 2}
    assert held_out(THREE, 0) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: domain("a b"), r"name is letters, digits.*'a b'"),
        (lambda: domain("a", 0), "weight is a number above 0; got 0"),
        (lambda: check([domain("a"), domain("a")]), "'a' stands there 2 times"),
        (lambda: domain("a", levels=1), "levels are two or more"),
        (lambda: CurriculumConfig(window=(0.8, 0.2)), r"0 <= low < high <= 1; got \[0.8, 0.2\]"),
        (lambda: CurriculumConfig(boost=0.5), "boost is 1 .* or more; got 0.5"),
        (lambda: RolloutConfig(keep="window", window=(0.5, 0.5)), r"window is two pass rates.*got \[0.5, 0.5\]"),
        (lambda: RolloutConfig(failure_rate=0), "failure_rate is a share above 0"),
    ],
)
def test_wrong_values_are_told_with_the_rule(wrong, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()


def group(*rewards: float) -> Group:
    episodes = [Episode(f"e{i}", "t", 0, 0, i, "ok", None, reward, [], 1, 0.1) for i, reward in enumerate(rewards)]
    return Group(0, "t", 0, episodes, 0)


@pytest.mark.parametrize(
    ("keep", "rewards", "kept"),
    [
        ("all", (1, 1, 1, 1), True),
        ("varied", (1, 1, 1, 1), False),
        ("varied", (0.5, 0.5, 0.5, 0.4), True),
        ("window", (0.5, 0.5, 0.5, 0.4), False),
        ("window", (1, 0, 0, 0), True),
        ("window", (1, 1, 1, 0), False),
    ],
)
def test_which_groups_are_worth_training(keep, rewards: tuple[float, ...], kept: bool) -> None:
    assert Filter(RolloutConfig(keep=keep, window=(0.25, 0.5)), 2)(group(*rewards)) == kept


def test_when_nothing_is_worth_training_any_more_the_run_stops_and_says_why() -> None:
    worth = Filter(RolloutConfig(keep="window", window=(0.25, 0.5)), 2)
    for _ in range(2 * IN_A_ROW):
        worth(group(1, 1))
    assert worth(group(1, 0)), "one that is worth it begins the count anew"
    for _ in range(2 * IN_A_ROW):
        worth(group(1, 1))
    with pytest.raises(RockrollError, match=r"window \[0.25, 0.5\]: 65 groups in a row .* pass rate is 1.00; give the"):
        worth(group(1, 1))
