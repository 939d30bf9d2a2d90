"""The recipe of two agents, trained by the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.whole.conftest import Command, rows

SMALL = ["steps=2", "rollout.groups=2", "rollout.episodes=4", "rollout.concurrency=4", "eval.episodes=4"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_agents_are_trained_each_on_what_it_said_and_earned(rockroll: Command, tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    words = [word for each in [f"model={rockroll.model}", *SMALL] for word in ("--set", each)]
    done = rockroll("train", "recipes/team.yaml", "--run-dir", str(run_dir), *words, timeout=380)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = rows(run_dir)
    assert last["step"] == 2 and last["version"] == 2
    assert last["agents/tokens/asker"] + last["agents/tokens/solver"] == last["tokens/sampled"] > 0
    assert last["agents/broke/asker"] == last["agents/broke/solver"] == 0
    records = [json.loads(line) for line in (run_dir / "episodes" / "train-000001.jsonl").read_text().splitlines()]
    assert len(records) == 8
    for record in records:
        rewards = [each["reward"] for each in record["agents"]]
        assert record["reward"] == sum(rewards) / 2
        assert {sample["agent"] for sample in record["samples"]} == {"asker", "solver"}
        assert len(record["advantages"]) == len(record["samples"])
        assert record["agents"][0]["sandbox"] != record["agents"][1]["sandbox"]
