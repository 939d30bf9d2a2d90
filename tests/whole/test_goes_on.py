"""A run goes on otherwise than it began: the real command, the same run directory, other ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.whole.conftest import Command, rows

LAKE = ["rollout.groups=2", "rollout.episodes=4", "eval.episodes=4", "checkpoint.every=1", "train.threads=1"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lora", [[], ["train.lora={rank: 4, alpha: 8}"]])
def test_one_rank_goes_on_as_two_with_its_metrics_and_tasks(rockroll: Command, tmp_path: Path, lora: list[str]) -> None:
    run_dir = tmp_path / "r"

    def train(*settings: str, resume: bool = False) -> tuple[int, str]:
        words = [word for each in [f"model={rockroll.model}", *LAKE, *lora, *settings] for word in ("--set", each)]
        more = ["--resume"] if resume else []
        done = rockroll("train", "recipes/frozen_lake.yaml", "--run-dir", str(run_dir), *words, *more, timeout=280)
        return done.returncode, done.stdout + done.stderr

    assert train("steps=2")[0] == 0
    before = rows(run_dir)
    code, said = train("steps=3", "seed=5", resume=True)
    assert code == 2 and "--resume: seed was 1 and is 5 now" in said
    assert rows(run_dir) == before

    code, said = train("steps=3", "train.ranks=2", "train.zero_stage=2", resume=True)
    assert code == 0, said
    assert "goes on with train.ranks: 1 → 2" in said and "continuing after step 2" in said
    after = rows(run_dir)
    assert after[:3] == before and [row["step"] for row in after] == [0, 1, 2, 3] and after[3]["version"] == 3
    assert len(list((run_dir / "checkpoints" / "step_3").glob("optimizer-*.safetensors"))) == 2
    assert (run_dir / "checkpoints" / "step_3" / "adapter").is_dir() == bool(lora)
