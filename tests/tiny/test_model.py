"""The tiny model is always the same, and a wrong one is not kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rockroll.digest import digest
from rockroll.errors import TrainError
from rockroll.tiny import tokenizer as tokenizers
from rockroll.tiny.model import fresh, make
from rockroll.tiny.warmup import warm_up


def warmed(steps: int) -> dict[str, torch.Tensor]:
    tokenizer = tokenizers.build()
    model = fresh(
        tokenizer.get_vocab_size(), tokenizer.token_to_id(tokenizers.PAD), tokenizer.token_to_id(tokenizers.END)
    )
    warm_up(model, tokenizer, steps=steps)
    return dict(model.state_dict())


def test_two_warm_ups_give_the_same_bits() -> None:
    first, second = warmed(2), warmed(2)
    assert digest(first) == digest(second)
    assert digest(first) != digest(warmed(1))
    assert 800_000 < sum(t.numel() for name, t in first.items() if name != "lm_head.weight") < 1_000_000


def test_a_model_outside_the_bounds_is_an_error_and_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"held-out pass rate greedy is 0\.000; between 0\.15 and 0\.4"):
        make(tmp_path / "tiny", steps=1, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_command_makes_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rockroll.tiny", "--out", str(tmp_path / "tiny")]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0 and "held-out pass rate greedy: 0." in made.stdout, made.stderr
    again = subprocess.run(command, capture_output=True, text=True)
    assert "the tiny model is there" in again.stdout
