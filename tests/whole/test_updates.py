"""What becomes of an answer that is under way when new weights arrive, in a run that samples ahead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.whole.conftest import Command, rows


def turns(run_dir: Path) -> list[tuple[set[int], int]]:
    """Of every trained turn: the versions of its tokens, and how many were thrown away before it began anew."""
    found = []
    for file in sorted((run_dir / "episodes").glob("train-*.jsonl")):
        for line in file.read_text().splitlines():
            episode: dict[str, Any] = json.loads(line)
            for sample in episode["samples"]:
                for turn in sample["turns"]:
                    versions = set(sample["versions"][turn["start"] : turn["end"]])
                    found.append((versions, episode["record"][turn["number"]].get("thrown", 0)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("on_update", ["survive", "restart"])
def test_an_answer_goes_on_with_new_weights_or_begins_anew(rockroll: Command, tmp_path: Path, on_update: str) -> None:
    run_dir = tmp_path / "r"
    settings = ["steps=8", "rollout.max_staleness=2", f"rollout.on_update={on_update}", "eval.episodes=0"]
    # nothing is ever done, so that answers are as long as they may be
    settings += ["rollout.max_tokens=64", "rollout.temperature=2.0", "rollout.concurrency=12"]
    done = rockroll(*rockroll.train(run_dir, *(word for each in settings for word in ("--set", each))))
    assert done.returncode == 0, done.stderr
    _, *steps = rows(run_dir)
    assert [row["version"] for row in steps] == list(range(1, 9)) and max(row["staleness/max"] for row in steps) <= 2
    seen = turns(run_dir)
    mixed = [versions for versions, _ in seen if len(versions) > 1]
    thrown = sum(number for _, number in seen)
    if on_update == "survive":
        assert mixed and not thrown
        assert all(max(versions) - min(versions) <= 2 for versions in mixed)
    else:
        assert thrown and not mixed
        assert sum(row["tokens/wasted"] for row in steps) >= thrown
