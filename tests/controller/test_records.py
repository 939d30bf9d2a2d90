"""What a run keeps of its episodes: advantages beside tokens, and what was discarded, as much as the recipe says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rockroll.controller.config import RecordsConfig
from rockroll.controller.records import Records
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


@pytest.mark.parametrize("field", ["advantages", "discarded"])
def test_a_bound_below_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"records {field} is at least 0; got -1"):
        RecordsConfig(**{field: -1})
