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

KILLS, GROUPS, EPISODES = 15, 3, 4
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
    """Killed at KILLS random moments, from its first seconds to the writing of its last checkpoint. A run that came to
    its end is told to do some more steps."""
    path, draw, killed, steps, lasts = tmp_path / "r", random.Random(bound), 0, 4, 60.0
    while killed < KILLS or not (path / "checkpoints" / f"step_{steps}" / "model" / "config.json").exists():
        if (path / "checkpoints" / f"step_{steps}").exists():
            steps += 4
        more = ["--set", f"steps={steps}", "--set", f"rollout.max_staleness={bound}", "--set", "checkpoint.every=3"]
        resume = ["--resume"] if (path / "recipe.yaml").exists() else []
        began = time.monotonic()
        process = rockroll.start(*rockroll.train(path, *more, *resume))
        try:
            out, err = process.communicate(timeout=draw.uniform(0.2, 1.1) * lasts if killed < KILLS else 900)
        except subprocess.TimeoutExpired:
            for pid in [process.pid, *rockroll.pids(*PARTS)]:
                with contextlib.suppress(ProcessLookupError):  # it dies with its parent
                    os.kill(pid, signal.SIGKILL)
            process.communicate()
            killed += 1
        else:
            assert process.returncode == 0, err + out
            lasts = min(lasts, time.monotonic() - began)
    print(f"killed {killed} times in {steps} steps")
    assert [row["step"] for row in rows(path)] == list(range(steps + 1))
    assert max(row.get("staleness/max", 0) for row in rows(path)) <= bound
    trained = [(each["group"], each["index"]) for each in records(path)]
    assert sorted(trained) == [(group, index) for group in range(steps * GROUPS) for index in range(EPISODES)]
    assert len({(each["group"], each["seed"]) for each in records(path)}) == steps * GROUPS
