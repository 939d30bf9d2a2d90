"""What a run writes down can be read back, also after a crash."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rockroll import logs
from rockroll.observe import record
from rockroll.observe.display import Display, Status
from rockroll.observe.index import split_and_step
from rockroll.observe.metrics import MetricsLog, Row, read_rows, thinned
from rockroll.observe.panes import Panes, sparkline
from rockroll.observe.record import EpisodeLog


def test_rows_are_on_disk_when_written_and_go_to_tensorboard(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write({"step": 0, "eval/pass_rate": 0.25})
    log.write({"step": 1, "reward/mean": 1 / 3})
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"step": 0, "eval/pass_rate": 0.25},
        {"step": 1, "reward/mean": 0.333333},
    ]
    log.close()
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    assert b"reward/mean" in events.read_bytes()


def test_a_resumed_run_has_each_step_once_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(4):
        log.write({"step": step, "reward/mean": 0.5})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    log = MetricsLog(tmp_path, resume_from=2)
    log.write({"step": 3, "reward/mean": 0.5})
    log.close()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    assert sorted(_on_board(tmp_path)) == [0, 1, 2, 3]


@given(
    steps=st.integers(3, 300), every=st.sampled_from([0, 1, 7, 50]), most=st.integers(200, 6000), wide=st.integers(1, 9)
)
def test_thinned_rows_fit_and_keep_the_ends_and_the_evaluations(steps: int, every: int, most: int, wide: int) -> None:
    rows: list[Row] = [
        {"step": step, **({"eval/pass_rate": 0.5} if every and step % every == 0 else {})}
        | {f"loss/{n}": step / 7 for n in range(wide)}
        for step in range(steps)
    ]
    kept = thinned(rows, most)
    assert kept[0] is rows[0] and kept[-1] is rows[-1]
    size = sum(len(json.dumps(row)) + 1 for row in kept)
    assert size <= most or len(kept) <= 3
    assert [row["step"] for row in kept] == sorted({row["step"] for row in kept})
    evaluated = [row for row in rows if "eval/pass_rate" in row]
    if 2 * sum(len(json.dumps(row)) + 1 for row in [*evaluated, rows[0], rows[-1]]) <= most:
        assert all(row in kept for row in evaluated)


def test_a_metrics_file_is_bounded_and_its_curve_stays_whole(tmp_path: Path) -> None:
    most = 2**15
    first = MetricsLog(tmp_path, most=most)
    for step in range(400):
        first.write({"step": step, "reward/mean": step / 2000, **({"eval/pass_rate": 0.5} if step == 33 else {})})
    first.close()
    log = MetricsLog(tmp_path, resume_from=399, most=most)
    for step in range(400, 2000):
        log.write({"step": step, "reward/mean": step / 2000})
        assert (tmp_path / "metrics.jsonl").stat().st_size <= most
    log.close()
    rows = read_rows(tmp_path / "metrics.jsonl")
    steps = [int(row["step"]) for row in rows]
    assert steps[0] == 0 and steps[-1] == 1999 and 33 in steps and len(set(steps)) == len(steps) > 100
    assert max(after - before for before, after in pairwise(steps)) <= 32, "no stretch of the curve is gone"
    assert all(row["reward/mean"] == row["step"] / 2000 for row in rows)
    assert sorted(_on_board(tmp_path)) == steps
    assert MetricsLog(tmp_path, resume_from=1999).last_step == 1999


def _on_board(run_dir: Path) -> list[int]:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    events = (e for path in (run_dir / "tensorboard").iterdir() for e in loader.EventFileLoader(str(path)).Load())
    return [event.step for event in events if event.summary.value]


def test_a_log_that_a_process_writes_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "engine-0.log"
    with log.open("ab", buffering=0) as out:
        for line in range(1000):
            out.write(f"line {line}\n".encode())
            logs.bound(log, 4096)
    kept, before = log.read_text(), log.with_name("engine-0.log.1").read_text()
    assert len(kept) <= 4096 and len(before) <= 4096 + 16
    lines = (before + kept).splitlines()
    assert lines[-1] == "line 999" and "\0" not in before + kept
    assert lines[1:] == [f"line {line}" for line in range(1001 - len(lines), 1000)], "nothing between the two is lost"
    assert {path.name for path in tmp_path.iterdir()} == {"engine-0.log", "engine-0.log.1"}


def test_a_step_done_again_replaces_its_episode_records(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path)
    log.write("train", 1, [{"id": "a"}, {"id": "b"}])
    log.write("train", 1, [{"id": "c"}])
    assert log.read("train", 1) == [{"id": "c"}]
    assert log.read("eval", 1) == []


def test_small_numbers_keep_their_digits(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write({"step": 1, "loss/lr": 4.1234567e-7, "reward/mean": 1 / 3, "time/step_s": 123.4567891})
    log.close()
    assert read_rows(log.path) == [
        {"step": 1, "loss/lr": 4.12346e-7, "reward/mean": 0.333333, "time/step_s": 123.456789}
    ]


def test_records_at_their_bound_are_looked_at_no_more_often_where_more_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def look(name: str) -> tuple[str, int]:
        looked.append(name)
        return split_and_step(name)

    log = EpisodeLog(tmp_path, most=2000)
    for step in range(1, 200):
        log.write("train", step, [{"id": "a" * 10}])
        log.add("eval", step, {"id": "b"})
    monkeypatch.setattr(record, "split_and_step", look)
    log.write("train", 200, [{"id": "a" * 10}])
    assert len(looked) == 1
    kept = sorted(int(path.stem[6:]) for path in log.folder.glob("train-*.jsonl"))
    assert kept == list(range(kept[0], 201)) and 50 < len(kept) < 90
    assert sum(path.stat().st_size for path in log.folder.glob("*.jsonl")) <= 2000
    again = EpisodeLog(tmp_path, most=2000)
    again.write("train", 201, [{"id": "a" * 60}])
    assert not (log.folder / f"train-{kept[0]:06d}.jsonl").exists()


def test_the_panel_shows_the_state_and_plain_output_has_no_escapes() -> None:
    status = Status("try", 10, curve=[0.0, 0.5, 1.0], evals=[(0, 0.25)], outcomes={"ok": 3, "timeout": 0})
    status.enter("rollout", 128)
    out = io.StringIO()
    Console(file=out, width=100).print(Panes(status))
    assert "rollout 0/128 episodes" in out.getvalue() and "step 0: 25%" in out.getvalue()
    assert "ok 3" in out.getvalue() and "timeout" not in out.getvalue()
    plain = io.StringIO()
    with Display(status, Console(file=plain)) as display:
        display.line("step 1  [not markup]")
    assert plain.getvalue() == "step 1  [not markup]\n"
    assert sparkline([0.0, 0.5, 1.0]) == " ▄█"
