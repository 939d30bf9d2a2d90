"""Supervised training: masked tokens only, the same weights every time."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rockroll.errors import TrainError
from rockroll.train.policy import load_model
from rockroll.train.sft import SupervisedConfig, train_supervised


def copying(count: int = 64) -> list[SimpleNamespace]:
    """A prompt of five tokens, then the same five: only the copy is trained."""
    rng = random.Random(3)
    samples = []
    for _ in range(count):
        word = [rng.randrange(8) for _ in range(5)]
        samples.append(SimpleNamespace(ids=[*word, 9, *word], mask=[False] * 6 + [True] * 5))
    return samples


def test_the_loss_falls_from_that_of_a_guess(model_path: Path):
    seen: list[int] = []
    losses = train_supervised(
        load_model(model_path),
        copying(),
        SupervisedConfig(steps=40, samples_per_step=16, warmup_steps=5, lr=1e-2),
        lambda step, _loss: seen.append(step),
    )
    assert losses[0] == pytest.approx(4.16, abs=0.2)  # ln 64
    assert losses[-1] < 2.2  # ln 8 and less
    assert seen == list(range(40))


def test_the_first_loss_is_the_mean_over_masked_tokens(model_path: Path):
    model = load_model(model_path)
    samples = copying(6)
    total, count = 0.0, 0
    with torch.no_grad():
        for s in samples:
            logp = torch.log_softmax(model(torch.tensor([s.ids])).logits[0], -1)
            for i, trained in enumerate(s.mask):
                if trained:
                    total, count = total - float(logp[i - 1, s.ids[i]]), count + 1
    config = SupervisedConfig(steps=1, samples_per_step=6, tokens_per_microbatch=25)
    assert train_supervised(model, samples, config)[0] == pytest.approx(total / count, abs=1e-5)


def test_the_same_samples_and_seed_make_the_same_weights(model_path: Path):
    ends = []
    for seed in (0, 0, 1):
        model = load_model(model_path)
        train_supervised(model, copying(), SupervisedConfig(steps=5, samples_per_step=8, seed=seed))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_the_model_comes_back_whole(model_path: Path):
    model = load_model(model_path)
    train_supervised(model, copying(8), SupervisedConfig(steps=1))
    assert model(torch.tensor([[1, 2, 3], [4, 5, 6]])).logits.shape == (2, 3, 64)


def test_samples_that_teach_nothing_are_refused(model_path: Path):
    with pytest.raises(TrainError, match="none of 1 samples"):
        train_supervised(
            load_model(model_path), [SimpleNamespace(ids=[1, 2], mask=[False, False])], SupervisedConfig(steps=1)
        )
