"""The ledger: what a run had begun is read back as it was, up to the last whole record, from whichever checkpoint."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from rockroll.errors import HostError, UsageError
from rockroll.rollout.ledger import Ledger
from rockroll.rollout.opened import Began, Ended, Gone, Opened, Record, Taken, Whole
from rockroll.rollout.sample import Episode, Group, Sample


def episode(group: int, index: int, reward: float | None = 1.0) -> Episode:
    sample = Sample([1, 2, 3], [False, True, True], [0.0, -1.0, -0.1], [-1, 4, 4])
    outcome = "env_error" if reward is None else "ok"
    return Episode(f"{group}-{index}", "t", 0, group, index, outcome, None, reward, [sample], 1, 0.1)


def whole(group: int) -> Whole:
    return Whole(Group(group, "t", 0, [], 2, {"env_error": 1}), [0, 1])


STORY: list[Record] = [
    Began(0, 0),
    Began(1, 0),
    Began(2, 0),
    Ended(episode(1, 1)),
    Ended(episode(0, 0, None)),
    Ended(episode(1, 0)),
    whole(1),
    Ended(episode(0, 0)),
    Gone(2, 7, {"filtered": 2}),
    Began(3, 0),
    Ended(episode(0, 1)),
    whole(0),
    Taken(0, [0, 1], 4),
    Ended(episode(3, 1)),
    Began(4, 1),
]


def state(opened: Opened) -> tuple[object, ...]:
    kept = {id: (k.version, k.episodes, k.whole) for id, k in opened.open.items()}
    return opened.next, opened.version, list(opened.open), kept, opened.batches, opened.books.groups


def told(records: list[Record], after: int = 0) -> Opened:
    opened = Opened()
    for record in records:
        opened.add(record)
    opened.forget(after)
    return opened


def test_what_is_open_and_what_was_trained() -> None:
    opened = told(STORY)
    assert list(opened.open) == [3, 4] and opened.open[3].episodes == [episode(3, 1)]
    ((zero, one),) = opened.batches.values()
    assert [e.index for e in one.episodes] == [0, 1] and [e.reward for e in zero.episodes] == [1.0, 1.0]
    assert one.wasted_tokens == 2 + 7 and one.discarded == {"env_error": 1, "filtered": 2}
    assert opened.last_step == 1 and opened.position.held == {3: 0, 4: 1} and opened.position.next == 5
    assert [(step, [g.id for g in groups]) for step, groups in opened.trained()] == [(1, [0, 1])]
    assert opened.position.taken == []


def test_a_batch_whose_weights_were_not_delivered_is_taken_again() -> None:
    opened = told(STORY[:-1])
    assert list(opened.trained()) == [] and opened.position.taken == [[0, 1]]
    assert "as they were: 1" in str(opened) and "1 ended episodes of 1 open groups are kept" in str(opened)


def test_a_group_that_is_begun_anew_keeps_nothing() -> None:
    opened = told([*STORY, Began(3, 2)])
    assert opened.open[3].episodes == [] and opened.books.groups[3] == (2, {"ok": 1})


def test_it_is_read_back_up_to_the_last_whole_record_wherever_it_was_cut(tmp_path: Path) -> None:
    sizes = []
    with Ledger(tmp_path / "whole") as ledger:
        path = ledger._file.path
        for record in STORY:
            sizes.append(path.stat().st_size)
            ledger.put(record)
    data = path.read_bytes()
    sizes.append(len(data))
    for cut in sorted(
        {*range(0, len(data), 37), *(size + by for size in sizes for by in (-1, 0, 1)), 5} - {len(data) + 1}
    ):
        folder = tmp_path / f"{cut}"
        folder.mkdir()
        (folder / path.name).write_bytes(data[:cut])
        records = STORY[: sum(size <= cut for size in sizes[1:])]
        with Ledger(folder) as again:
            assert state(again.past) == state(told(records)), cut
            again.put(Began(9, 5))
        with Ledger(folder) as again:
            assert state(again.past) == state(told([*records, Began(9, 5)])), cut


def test_a_checkpoint_makes_it_short_and_either_checkpoint_can_be_continued(tmp_path: Path) -> None:
    after: list[Record] = [Ended(episode(4, 0)), Ended(episode(3, 0)), whole(3)]
    with Ledger(tmp_path) as ledger:
        for record in STORY:
            ledger.put(record)
        before = ledger._file.path.stat().st_size
        ledger.rotate(1)
        assert ledger._file.path.name == "00001-after-1.ledger" and ledger._file.path.stat().st_size < before
        for record in after:
            ledger.put(record)
    with Ledger(tmp_path, 1) as ledger:
        assert state(ledger.past) == state(told([*STORY, *after], 1)) and not ledger.past.batches
    with Ledger(tmp_path, 0) as ledger:
        assert state(ledger.past) == state(told([*STORY, *after])), "the checkpoint of step 1 was removed by hand"
        ledger.prune(1)
    with pytest.raises(UsageError, match=r"not since step 0; continue from a later checkpoint"):
        Ledger(tmp_path, 0)


def test_the_floor_is_the_lowest_group_that_a_run_may_still_go_on_with(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        floors = []
        for record in STORY:
            ledger.put(record)
            floors.append(ledger.floor)
        assert floors[0] == 0 and floors[-3:] == [3, 3, 3]
        ledger.put(Gone(3, 0, {}))
        ledger.put(Gone(4, 0, {}))
        assert ledger.floor == 5, "nothing is open: the next one to begin"
    with Ledger(tmp_path) as ledger:
        assert ledger.floor == 5


def test_a_checkpoint_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="says which tasks were trained, but not since step 4"):
        Ledger(tmp_path / "ledger", 4)


def test_what_is_damaged_or_of_another_kind_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        path = ledger._file.path
        for record in STORY:
            ledger.put(record)
    data = path.read_bytes()
    path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    with pytest.raises(HostError, match="is damaged at byte"):
        Ledger(tmp_path)
    path.write_bytes(b"something else")
    with pytest.raises(UsageError, match="is no ledger of rockroll's"):
        Ledger(tmp_path)


def test_an_episode_is_kept_exactly(tmp_path: Path) -> None:
    exact = msgspec.structs.replace(episode(0, 0, 0.1 + 0.2), turn_rewards=[1e-300, 0.1], duration_s=1 / 3)
    with Ledger(tmp_path) as ledger:
        ledger.put(Began(0, 0))
        ledger.put(Ended(exact))
    with Ledger(tmp_path) as ledger:
        assert ledger.past.open[0].episodes == [exact]


def test_a_batch_has_nothing_of_the_situation_that_its_group_was_begun_with_first() -> None:
    first = msgspec.structs.replace(episode(0, 0), id="first", seed=9)
    broken = msgspec.structs.replace(episode(0, 1, None), seed=9)
    opened = told(
        [
            Began(0, 0),
            Ended(first),
            Ended(broken),
            Ended(episode(0, 0)),
            Ended(episode(0, 1)),
            whole(0),
            Taken(0, [0], 1),
        ]
    )
    ((group,),) = opened.batches.values()
    assert [(e.id, e.index) for e in group.episodes] == [("0-0", 0), ("0-1", 1)]


def test_a_checkpoint_between_batches_that_are_trained_again_keeps_those_after_it(tmp_path: Path) -> None:
    """The last batches of a run begin no groups: a death leaves several of them taken."""
    story: list[Record] = [Began(0, 0), Began(1, 0), Gone(1, 7, {"filtered": 2}), Began(2, 0)]
    story += [Ended(episode(id, index)) for id in (0, 2) for index in (0, 1)]
    story += [whole(0), whole(2), Taken(0, [0], 0), Taken(1, [2], 3)]
    with Ledger(tmp_path) as ledger:
        for record in story:
            ledger.put(record)
    with Ledger(tmp_path) as ledger:
        assert ledger.past.position.taken == [[0], [2]]
        later = ledger.past.batches[1]
        ledger.rotate(1)
    with Ledger(tmp_path, 1) as ledger:
        assert ledger.past.batches == {1: later} and ledger.past.position.taken == [[2]]
        assert later[0].wasted_tokens == 2 + 7 and not ledger.past.books.groups and not ledger.past.open
        ledger.rotate(2)
    with Ledger(tmp_path, 2) as ledger:
        assert not ledger.past.batches and ledger.past.next == 3
