"""What a run keeps of its episodes: advantages beside tokens, and what was discarded, as much as the recipe says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rockroll.controller.config import RecordsConfig
from rockroll.controller.records import Records
from rockroll.observe.index import EpisodeIndex
from rockroll.observe.record import EpisodeLog
from rockroll.observe.running import running
from rockroll.rollout.sample import Episode, Event, Group, Outcome, Placed, Sample

SAMPLE = Sample([1, 2], [False, True], [0.0, -1.0], [-1, 0])


def episode(id: str, outcome: Outcome = "ok", *, branches: int = 1, sandbox: str = "") -> Episode:
    reward = 1.0 if outcome == "ok" else None
    return Episode(id, "t", 7, 0, 0, outcome, None, reward, [SAMPLE] * branches, 1, 0.1, sandbox=sandbox)


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / "episodes" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_branch_has_the_advantages_that_the_trainer_told(tmp_path: Path) -> None:
    groups = [Group(0, "t", 7, [episode("a"), episode("b", branches=2)], 0), Group(1, "t", 8, [episode("c")], 0)]
    told = [[(1, 2, value)] for value in (0.1, 0.2, 0.3, 0.4)]
    Records(tmp_path, RecordsConfig()).trained(4, groups, told)
    found = {record["id"]: record["advantages"] for record in read(tmp_path, "train-000004")}
    assert found == {"a": [[[1, 2, 0.1]]], "b": [[[1, 2, 0.2]], [[1, 2, 0.3]]], "c": [[[1, 2, 0.4]]]}


def test_an_episode_without_a_sample_has_none_of_the_next_ones_advantages(tmp_path: Path) -> None:
    group = Group(0, "t", 7, [episode("a"), episode("b", branches=0), episode("c")], 0)
    told = [[(1, 2, 0.1)], [], [(1, 2, 0.2)]]
    Records(tmp_path, RecordsConfig()).trained(4, [group], told)
    found = {record["id"]: record["advantages"] for record in read(tmp_path, "train-000004")}
    assert found == {"a": [[[1, 2, 0.1]]], "b": [], "c": [[[1, 2, 0.2]]]}


def test_without_advantages_a_record_has_none(tmp_path: Path) -> None:
    Records(tmp_path, RecordsConfig(advantages=0)).trained(1, [Group(0, "t", 7, [episode("a")], 0)], [])
    (record,) = read(tmp_path, "train-000001")
    assert "advantages" not in record


def test_discarded_episodes_are_kept_at_once_and_so_many_a_step(tmp_path: Path) -> None:
    records = Records(tmp_path, RecordsConfig(discarded=2))
    hear = records.beside(lambda _: None)
    for step in (1, 2):
        records.step = step
        for i in range(5):
            hear(Event("finished", "train", 0, episode=episode(f"c{i}", "cancelled")))
            hear(Event("finished", "train", 0, episode=episode(f"b{i}", "infra_error")))
            hear(Event("finished", "train", 0, episode=episode(f"ok{i}")))
        kept = [record["id"] for record in read(tmp_path, f"discarded-{step:06d}")]
        assert kept == ["c0", "b0", "c1", "b1"], "the cancelled ones do not push the broken ones out"


def test_a_step_done_again_after_a_resume_begins_its_discarded_ones_anew(tmp_path: Path) -> None:
    for id in ("before", "after"):
        records = Records(tmp_path, RecordsConfig())
        records.step = 3
        records.beside(lambda _: None)(Event("finished", "train", 0, episode=episode(id, "timeout")))
    assert [record["id"] for record in read(tmp_path, "discarded-000003")] == ["after"]


def test_an_episode_is_at_work_from_its_sandbox_to_its_end(tmp_path: Path) -> None:
    heard: list[str] = []
    hear = Records(tmp_path, RecordsConfig()).beside(lambda event: heard.append(event.kind))
    hear(Event("placed", "train", 1, placed=Placed("a", "t", "box", "node", 1.0)))
    assert [each["sandbox"] for each in running(tmp_path)] == ["box"]
    hear(Event("finished", "train", 0, episode=episode("a", sandbox="box")))
    assert running(tmp_path) == [] and heard == ["placed", "finished"]


@pytest.mark.parametrize("field", ["advantages", "discarded", "trace_mb"])
def test_a_bound_below_nothing_is_refused(field: str) -> None:
    wrong: dict[str, Any] = {field: -1}
    with pytest.raises(ValueError, match=f"records {field} is at least 0; got -1"):
        RecordsConfig(**wrong)


def test_the_oldest_steps_go_where_records_are_bounded_and_the_index_forgets_them(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path, most=10_000)
    for step in range(1, 60):
        log.add("discarded", step, episode(f"d{step}", "infra_error"))
        log.write("train", step, [episode(f"a{step}"), episode(f"b{step}")])
        if step % 10 == 0:
            log.write("eval", step, [episode(f"e{step}")])
    left = sorted(path.name for path in (tmp_path / "episodes").glob("*.jsonl"))
    steps = {int(name.split("-")[1][:6]) for name in left}
    assert sum((tmp_path / "episodes" / name).stat().st_size for name in left) <= 10_000
    assert max(steps) == 59 and steps == set(range(min(steps), 60)), "steps go whole, the oldest first"
    with EpisodeIndex(tmp_path / "episodes").read() as database:
        assert min(row[0] for row in database.execute("SELECT step FROM episodes")) == min(steps)


def test_a_resumed_run_counts_what_is_there_and_a_step_larger_than_the_bound_stays(tmp_path: Path) -> None:
    for step in (1, 2):
        EpisodeLog(tmp_path, most=200).write("train", step, [episode("a"), episode("b")])
        assert [path.name for path in (tmp_path / "episodes").glob("*.jsonl")] == [f"train-{step:06d}.jsonl"]


def test_without_a_bound_all_steps_stay(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path, RecordsConfig(keep="all").most())
    for step in range(9):
        log.write("train", step, [episode("a")])
    assert len(list((tmp_path / "episodes").glob("*.jsonl"))) == 9


@pytest.mark.parametrize("keep", ["none", "5k", "-1", "much"])
def test_a_bound_that_is_no_size_is_refused(keep: str) -> None:
    with pytest.raises(ValueError, match=f"records keep is all, or a size from 1m on; got '{keep}'"):
        RecordsConfig(keep=keep)
