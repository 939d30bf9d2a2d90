"""sft and dpo through the same command, loop and resume as everything else, without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.whole.conftest import Command, rows


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_data_set_lowers_its_held_out_loss_and_goes_on_bit_for_bit(
    tiny_model: Path, tmp_path: Path, objective: str
) -> None:
    rockroll = Command(tmp_path / "home", tiny_model)  # nothing of a run like this needs a node

    def run(place: str, steps: int, *more: str) -> list[dict]:
        settings = [f"model={rockroll.model}", f"steps={steps}", "data.batch=8", "data.held_out_examples=16"]
        settings += ["data.options.size=256", "checkpoint.every=2"]
        words = [word for each in settings for word in ("--set", each)]
        done = rockroll(
            "train", f"recipes/{objective}.yaml", "--run-dir", str(tmp_path / place), *words, *more, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return rows(tmp_path / place)

    straight = run("straight", 4, "--set", "train.schedule=constant")
    assert not (tmp_path / "straight" / "logs" / "engine-0.log").exists()
    assert straight[-1]["eval/loss"] < straight[0]["eval/loss"]
    run("parts", 2, "--set", "train.schedule=constant")
    parts = run("parts", 4, "--set", "train.schedule=constant", "--resume")
    name = f"loss/{objective}"
    assert [(row["step"], row.get(name), row.get("data/epoch")) for row in parts] == [
        (row["step"], row.get(name), row.get("data/epoch")) for row in straight
    ]
    assert parts[-1]["eval/loss"] == straight[-1]["eval/loss"]
