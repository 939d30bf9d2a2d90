"""A run's records train again to the run's own weights, by the real command, with the trainer alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.whole.conftest import Command
from tests.whole.test_reproduce import MODES, end, start, trained, weights


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
def test_a_replay_ends_with_the_same_weights_bit_for_bit(mode: str, rockroll: Command, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    end(start(rockroll, run, mode))
    replay = rockroll.start("train", str(run / "recipe.yaml"), "--replay", str(run), "--run-dir", str(again))
    end(replay)
    assert weights(again) == weights(run)
    assert trained(again) == trained(run)
    assert not (again / "logs" / "engine.log").exists() and (again / "logs" / "trainer-0.log").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_was_sampled_without_a_trainer_trains(rockroll: Command, tmp_path: Path) -> None:
    sampled, later = tmp_path / "sampled", tmp_path / "later"
    small = ["--set", f"model={rockroll.model}", "--set", "rollout.groups=2", "--set", "rollout.episodes=2"]
    done = rockroll("rollout", "recipes/quickstart.yaml", "--steps", "2", "--run-dir", str(sampled), *small)
    assert done.returncode == 0, done.stderr
    assert "8 episodes" in done.stdout
    assert not (sampled / "logs" / "trainer-0.log").exists()
    said = rockroll("train", str(sampled / "recipe.yaml"), "--replay", str(sampled), "--run-dir", str(later))
    assert said.returncode == 0, said.stderr
    assert (later / "checkpoints" / "step_2" / "model" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dry_steps_change_no_weight_and_say_what_the_run_takes(rockroll: Command, tmp_path: Path) -> None:
    small = ["--set", f"model={rockroll.model}", "--set", "rollout.groups=2", "--set", "rollout.episodes=2"]
    dry = ["--dry-steps", "2", "--run-dir", str(tmp_path / "dry"), "--set", "eval.episodes=4"]
    done = rockroll("train", "recipes/quickstart.yaml", *small, *dry)
    assert done.returncode == 0, done.stderr
    assert "steps would take" in done.stdout and "in all about" in done.stdout and "disk" in done.stdout
    after = load_file(tmp_path / "dry" / "checkpoints" / "step_2" / "model" / "model.safetensors")
    before = load_file(rockroll.model / "model.safetensors")
    assert all(torch.equal(before[name].to(after[name].dtype), after[name]) for name in after)
