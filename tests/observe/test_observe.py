"""What a run writes down can be read back, also after a crash."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from rockroll.observe.display import Display, Status
from rockroll.observe.metrics import MetricsLog, read_rows
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
        log.write({"step": step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    log = MetricsLog(tmp_path, resume_from=2)
    log.write({"step": 3})
    log.close()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


def test_a_step_done_again_replaces_its_episode_records(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path)
    log.write("train", 1, [{"id": "a"}, {"id": "b"}])
    log.write("train", 1, [{"id": "c"}])
    assert log.read("train", 1) == [{"id": "c"}]
    assert log.read("eval", 1) == []


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
