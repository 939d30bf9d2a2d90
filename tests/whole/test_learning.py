"""The quick start's promise, at full length: three seeds of it learn, in turns, ahead, and with redundancy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.whole.conftest import Command, rows

MODES = {
    "sync": [],
    "async": ["rollout.max_staleness=1"],
    "redundant": ["rollout.redundancy.groups=2", "rollout.redundancy.episodes=1"],
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [7, 8, 9])
@pytest.mark.parametrize("mode", MODES)
def test_the_quick_start_learns(rockroll: Command, tmp_path: Path, mode: str, seed: int) -> None:
    run_dir = tmp_path / "r"
    recipe = ["train", "recipes/quickstart.yaml", "--run-dir", str(run_dir), "--set", f"model={rockroll.model}"]
    settings = [word for each in [f"seed={seed}", *MODES[mode]] for word in ("--set", each)]
    done = rockroll(*recipe, *settings, timeout=800)
    assert done.returncode == 0, done.stderr
    written = rows(run_dir)
    print(f"{mode}, seed {seed}:", " ".join(f"{row['reward/mean']:.2f}" for row in written if "reward/mean" in row))
    first, last = written[0]["eval/pass_rate"], written[-1]["eval/pass_rate"]
    assert first <= 0.40 and last >= 0.90, [(row["step"], row.get("reward/mean")) for row in written]
    if mode == "sync":
        assert sum(row["episodes/ok"] + row["episodes/truncated"] for row in written[1:]) <= 4000
    assert max(row["staleness/max"] for row in written[1:]) == (mode == "async")
