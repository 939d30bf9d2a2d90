"""The index says where each record lies, whatever happened to the files meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rockroll.observe.index import NAME, EpisodeIndex
from rockroll.observe.record import EpisodeLog
from rockroll.observe.running import Running, read, running


def records(n: int, **fields: object) -> list[dict[str, object]]:
    return [{"id": f"e{i}", "outcome": "ok", "reward": i / 2, "group": 3, "index": i, **fields} for i in range(n)]


def ids(index: EpisodeIndex) -> list[str]:
    with index.read() as database:
        return [row["id"] for row in database.execute("SELECT id FROM episodes ORDER BY file, line")]


def refreshed(folder: Path) -> tuple[EpisodeIndex, int]:
    """An index brought up to date, and how many files were read for it."""
    index = EpisodeIndex(folder)
    return index, max((todo for _, todo in index.refresh()), default=0)


def test_a_run_writes_its_index_as_it_goes(tmp_path: Path) -> None:
    EpisodeLog(tmp_path).write("train", 1, records(3))
    index, todo = refreshed(tmp_path / "episodes")
    assert todo == 0 and ids(index) == ["e0", "e1", "e2"]


def test_a_row_s_bytes_are_its_record_s(tmp_path: Path) -> None:
    EpisodeLog(tmp_path).write("train", 12, records(3, detail="ä\n"))
    index, _ = refreshed(tmp_path / "episodes")
    with index.read() as database:
        row = database.execute("SELECT * FROM episodes WHERE id = 'e1'").fetchone()
    data = (tmp_path / "episodes" / row["file"]).read_bytes()[row["offset"] :][: row["length"]]
    assert json.loads(data)["id"] == "e1"
    assert (row["split"], row["step"], row["line"], row["reward"], row["detail"]) == ("train", 12, 1, 0.5, "ä\n")


def test_files_that_came_were_replaced_grew_or_went_are_noticed_and_no_others_read(tmp_path: Path) -> None:
    log, folder = EpisodeLog(tmp_path), tmp_path / "episodes"
    for step in (1, 2, 3):
        log.write("train", step, records(2))
    (folder / "train-000002.jsonl").write_text('{"id": "other"}\n')
    (folder / "train-000003.jsonl").unlink()
    log.add("discarded", 1, {"id": "late"})
    index, todo = refreshed(folder)
    assert todo == 2 and ids(index) == ["late", "e0", "e1", "other"]
    log.add("discarded", 1, {"id": "later"})
    index, todo = refreshed(folder)
    assert todo == 1 and ids(index) == ["late", "later", "e0", "e1", "other"]


def test_a_line_that_is_being_written_waits_and_one_that_is_no_record_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "train-000001.jsonl").write_text('{"id": "a"}\nnonsense\n{"id": "b"}\n{"id": "c", "outc')
    (tmp_path / "notes-x.jsonl").write_text('{"id": "no"}\n')
    index, _ = refreshed(tmp_path)
    assert ids(index) == ["a", "b"]
    with index.read() as database:
        assert [row["line"] for row in database.execute("SELECT line FROM episodes")] == [0, 2]


@pytest.mark.parametrize("damage", [b"no database at all" * 100, b""])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    EpisodeLog(tmp_path).write("train", 1, records(2))
    for end in ("-wal", "-shm"):
        (tmp_path / "episodes" / f"{NAME}{end}").unlink(missing_ok=True)
    (tmp_path / "episodes" / NAME).write_bytes(damage)
    index, todo = refreshed(tmp_path / "episodes")
    assert todo == 1 and ids(index) == ["e0", "e1"]


def test_a_run_goes_on_where_its_index_cannot_be_written(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path)
    (tmp_path / "episodes" / NAME).mkdir()
    log.write("train", 1, records(1))
    assert log.read("train", 1) == records(1)


def test_a_run_that_may_not_be_written_to_is_indexed_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train-000001.jsonl").write_text('{"id": "a"}\n')
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    index, _ = refreshed(tmp_path)
    assert ids(index) == ["a"] and not (tmp_path / NAME).exists()
    index.close()


def test_a_run_without_records_has_an_empty_index_and_nothing_is_made_in_it(tmp_path: Path) -> None:
    index, todo = refreshed(tmp_path / "episodes")
    assert todo == 0 and ids(index) == [] and list(tmp_path.iterdir()) == []
    EpisodeLog(tmp_path).write("train", 1, records(1))
    assert ids(index) == ["e0"], "it is looked for beside the records as soon as there are some"
    index.close()


def test_the_episodes_at_work_are_known_until_they_end_and_no_longer(tmp_path: Path) -> None:
    at_work = Running(tmp_path)
    at_work.began("e1", {"id": "e1", "sandbox": "b1", "node": "n", "began_at": 2.0})
    at_work.began("e2", {"id": "e2", "sandbox": "b2", "node": "n", "began_at": 1.0})
    assert [each["id"] for each in running(tmp_path)] == ["e2", "e1"]
    at_work.ended("e2")
    at_work.ended("e2")
    assert read(tmp_path, "e2") is None and read(tmp_path, "../running/e1") is None
    assert (read(tmp_path, "e1") or {})["sandbox"] == "b1"
    Running(tmp_path)  # the next process: those of the one before it are at work no more
    assert running(tmp_path) == []


def test_a_file_that_goes_while_the_folder_is_read_costs_no_other(tmp_path: Path) -> None:
    EpisodeLog(tmp_path).add("train", 2, {"id": "e0"})
    (tmp_path / "episodes" / "train-000001.jsonl").symlink_to("gone")  # listed, and not there to be looked at
    assert ids(refreshed(tmp_path / "episodes")[0]) == ["e0"]
