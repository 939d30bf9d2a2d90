"""What a whole run would take, counted from dry steps; and that a dry step changes no weight."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rockroll.controller.config import CheckpointConfig, EvalConfig, RecordsConfig
from rockroll.controller.forecast import dry, forecast, shown, total
from rockroll.train.config import TrainConfig
from rockroll.train.critic import CriticConfig
from tests.controller.toy import config


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """Three dry steps, the first one slow."""
    rows = [{"step": 0, "time/eval_s": 4.0}]
    for step, seconds in ((1, 90.0), (2, 2.0), (3, 4.0)):
        rows.append({"step": step, "time/rollout_s": seconds, "time/train_s": 1.0, "tokens/sampled": 100})
    rows[-1]["time/eval_s"] = 6.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spans = [{"name": "saving", "ph": "X", "ts": 0, "dur": 1_500_000}, {"name": "saving", "ph": "i", "ts": 9}]
    (tmp_path / "trace.json").write_text(json.dumps(spans))
    for name, size in (("checkpoints/step_3/model/a", 5000), ("episodes/train-000001.jsonl", 2**20)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"\0" * size)
    (tmp_path / "episodes" / "eval-000003.jsonl").write_bytes(b"\0" * 9)
    return tmp_path


def test_it_counts_steps_evaluations_and_checkpoints_of_the_whole_run(ran: Path) -> None:
    whole = dataclasses.replace(
        config(steps=100, records=RecordsConfig(keep="20m")),
        eval=EvalConfig(every=30),
        checkpoint=CheckpointConfig(every=10, keep=2),
    )
    found = {line.what: (line.each, line.times, line.whole) for line in forecast(whole, ran)}
    assert found["rollout"] == (3.0, 100, 300.0), "without the first step, which warms up"
    assert found["train"] == (1.0, 100, 100.0)
    assert found["evaluation"] == (5.0, 5, 25.0), "before, after 30, 60, 90, and after the last"
    assert found["saving"] == (1.5, 10, 15.0)
    assert found["sampled"] == (100, 100, 10_000)
    assert found["checkpoints"] == (5000, 2, 10_000), "of ten, two stay"
    assert found["episode records"] == (2**20 / 3, 100, 20 * 2**20), "at most what records.keep says"
    assert "sync" not in found and "journal" not in found
    assert total(forecast(whole, ran), "s") == 440.0


def test_one_dry_step_is_enough(ran: Path) -> None:
    lines = (ran / "metrics.jsonl").read_text().splitlines()[:2]
    (ran / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = {line.what: line.each for line in forecast(config(steps=10), ran)}
    assert found["rollout"] == 90.0


def test_a_dry_recipe_learns_nothing_and_does_everything_else() -> None:
    whole = dataclasses.replace(
        config(steps=3000, records=RecordsConfig(trace_mb=0)),
        train=TrainConfig(advantage="gae", lr=1e-3, warmup_steps=5, critic=CriticConfig(lr=1e-3, head_start=9)),
    )
    made = dry(whole, 2)
    assert made.steps == 2 and made.train.critic is not None
    assert {made.train.learning_rate(n) for n in range(9)} == {0.0} and made.train.critic.lr == 0.0
    assert made.train.critic.head_start == 0, "its steps would leave the policy's update out"
    assert made.records.trace_mb == 1 and made.checkpoint.every == 0
    assert (made.rollout, made.engine, made.domains) == (whole.rollout, whole.engine, whole.domains)


def test_figures_are_shown_for_people() -> None:
    assert shown(90, "s") == "90.0 s" and shown(7200, "s") == "2.0 h"
    assert shown(12_345, "tokens") == "12,345 tokens" and shown(1536, "bytes") == "1.5kB"
