"""`deterministic: true`, with real engine, trainer and processes: runs are equal to the last bit, killed or not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.whole.conftest import Command

RECIPE = """
name: fate
seed: 5
steps: 6
deterministic: true
task: {env: "tests.whole.games:Fate", max_turns: 6}
rollout: {groups: 2, episodes: 4, max_tokens: 12, episode_timeout: 0}
engine: {max_batch: 16, context_length: 256}
train: {lr: 5.0e-4, threads: 1}
eval: {episodes: 4, temperature: 1, every: 3}
checkpoint: {every: 2}
"""
MODES = {"sync": [], "ahead": ["--set", "rollout.max_staleness=1"]}


def start(rockroll: Command, path: Path, mode: str) -> subprocess.Popen[str]:
    recipe = path.parent / "fate.yaml"
    recipe.write_text(RECIPE)
    resume = ["--resume"] if (path / "recipe.yaml").exists() else []
    settings = ["--set", f"model={rockroll.model}", *MODES[mode]]
    return rockroll.start("train", str(recipe), "--run-dir", str(path), *settings, *resume)


def end(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err + out


def said(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def weights(path: Path) -> bytes:
    return (path / "checkpoints" / "step_6" / "model" / "model.safetensors").read_bytes()


def trained(path: Path) -> list[tuple[str, int, int, list[Any]]]:
    found = []
    for file in sorted((path / "episodes").glob("train-*.jsonl")):
        for each in map(json.loads, file.read_text().splitlines()):
            found.append((file.name, each["seed"], each["index"], [s["ids"] for s in each["samples"]]))
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
def test_two_runs_are_equal_and_so_is_one_that_is_killed_at_random_moments(
    mode: str, rockroll: Command, tmp_path: Path
) -> None:
    whole, second = tmp_path / "whole", tmp_path / "second"
    began = time.monotonic()
    end(start(rockroll, whole, mode))
    lasts = time.monotonic() - began
    end(start(rockroll, second, mode))
    assert said(second) == said(whole) and weights(second) == weights(whole)
    assert len({row["reward/mean"] for row in said(whole)[1:]}) > 1, "it had something to learn from"
    assert said(whole)[1]["loss/grad_norm"] > 0

    draw, killed, runs = random.Random(1), 0, 0
    times = int(os.environ.get("ROCKROLL_KILLS", "15"))
    while killed < times:
        path = tmp_path / f"{runs}"
        runs += 1
        while not (path / "checkpoints" / "step_6" / "model" / "config.json").exists():
            process = start(rockroll, path, mode)
            try:
                process.communicate(timeout=draw.uniform(0.2, 1) * lasts if killed < times else 600)
            except subprocess.TimeoutExpired:
                for pid in [process.pid, *rockroll.pids("rockroll.engine.server", "rockroll.train.server")]:
                    with contextlib.suppress(ProcessLookupError):  # it dies with its parent
                        os.kill(pid, signal.SIGKILL)
                process.communicate()
                killed += 1
            else:
                assert process.returncode == 0
        assert [row["step"] for row in said(path)] == list(range(7))
        assert said(path) == said(whole)
        assert trained(path) == trained(whole)
        assert weights(path) == weights(whole)
