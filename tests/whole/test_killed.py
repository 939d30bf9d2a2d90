"""A run of the quick start whose every process is killed, node and sandboxes included, goes on and loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.whole.conftest import Command, rows

STEPS, GROUPS, EPISODES = 4, 3, 4
PARTS = (
    "rockroll.engine.server",
    "rockroll.train.server",
    "rockroll.placement.node",
    "rockroll.placement.warden",
)


def records(path: Path) -> list[dict[str, object]]:
    files = sorted((path / "episodes").glob("train-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bound", [0, 1])
def test_every_task_is_trained_once_and_every_step_is_there_once(bound: int, rockroll: Command, tmp_path: Path) -> None:
    path, draw, killed = tmp_path / "r", random.Random(bound), 0
    more = ["--set", f"steps={STEPS}", "--set", f"rollout.max_staleness={bound}", "--set", "checkpoint.every=3"]
    lasts = 60.0
    while not (path / "checkpoints" / f"step_{STEPS}" / "model" / "config.json").exists():
        resume = ["--resume"] if (path / "recipe.yaml").exists() else []
        began = time.monotonic()
        process = rockroll.start(*rockroll.train(path, *more, *resume))
        try:
            out, err = process.communicate(timeout=draw.uniform(0.3, 1) * lasts if killed < 5 else 900)
        except subprocess.TimeoutExpired:
            for pid in [process.pid, *rockroll.pids(*PARTS)]:
                with contextlib.suppress(ProcessLookupError):  # it dies with its parent
                    os.kill(pid, signal.SIGKILL)
            process.communicate()
            killed += 1
        else:
            assert process.returncode == 0, err + out
            lasts = min(lasts, time.monotonic() - began)
    assert killed > 1
    assert [row["step"] for row in rows(path)] == list(range(STEPS + 1))
    assert max(row.get("staleness/max", 0) for row in rows(path)) <= bound
    trained = [(each["group"], each["index"]) for each in records(path)]
    assert sorted(trained) == [(group, index) for group in range(STEPS * GROUPS) for index in range(EPISODES)]
    assert len({(each["group"], each["seed"]) for each in records(path)}) == STEPS * GROUPS
