"""The gradient is that of the formula, whatever the micro-batches, ranks and ZeRO stage."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from rockroll.train.api import TrainBatch
from rockroll.train.config import TrainConfig
from rockroll.train.trainer import RankTrainer

from .gradient_worker import Work, gradient

WORKER = Path(__file__).with_name("gradient_worker.py")


def plain_gradient(config: TrainConfig, batch: TrainBatch) -> dict[str, Tensor]:
    """The whole loss in one expression: a sample at a time, a token at a time, no packing, no DeepSpeed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.model).eval()
    rewards = {s.episode: (s.group, s.reward) for s in batch.samples}
    total, loss = 0, torch.zeros(())
    for sample in batch.samples:
        mine = [r for g, r in rewards.values() if g == sample.group]
        mean = sum(mine) / len(mine)
        std = math.sqrt(sum((r - mean) ** 2 for r in mine) / len(mine))
        advantage = (sample.reward - mean) / (std + 1e-6) if std else 0.0
        logp = torch.log_softmax(model(torch.tensor([sample.ids])).logits[0] / batch.temperature, -1)
        for i, trained in enumerate(sample.mask):
            if not trained:
                continue
            total += 1
            chosen = logp[i - 1, sample.ids[i]]
            weight = min(math.exp(float(chosen.detach()) - sample.logprobs[i]), config.importance_cap)
            loss = loss - weight * torch.exp(chosen - chosen.detach()) * advantage
            if config.entropy:
                loss = loss + config.entropy * (logp[i - 1].exp() * logp[i - 1]).sum()
    (loss / total).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 1e-3
    for name, g in expected.items():
        assert torch.allclose(found[name], g, atol=2e-5 * largest), (name, float((found[name] - g).abs().max()))


def micro_batches(trainer: RankTrainer, batch: TrainBatch) -> int:
    return len(trainer._mine(trainer._rows(batch)[0]))


def test_the_gradient_of_one_rank_is_the_formulas(config: TrainConfig, batch: Callable[..., TrainBatch]):
    config = replace(config, entropy=0.01)
    given = batch(temperature=0.8)
    assert_same(gradient(RankTrainer(config), given), plain_gradient(config, given))


def test_one_two_and_four_micro_batches_have_one_gradient(config: TrainConfig, batch: Callable[..., TrainBatch]):
    given = batch()
    expected = plain_gradient(config, given)
    counts = set()
    for budget in (4096, 280, 140):
        for stage in (0, 2):
            trainer = RankTrainer(replace(config, tokens_per_microbatch=budget, zero_stage=stage))
            counts.add(micro_batches(trainer, given))
            assert_same(gradient(trainer, given), expected)
    assert len(counts) == 3 and min(counts) == 1 and max(counts) >= 4, counts


def test_gradient_checkpointing_changes_nothing(config: TrainConfig, batch: Callable[..., TrainBatch]):
    given = batch()
    trainer = RankTrainer(replace(config, gradient_checkpointing=True))
    assert_same(gradient(trainer, given), plain_gradient(config, given))


def test_samples_without_sampled_tokens_count_in_advantages_only(config: TrainConfig, batch: Callable[..., TrainBatch]):
    given = batch()
    silent = [
        msgspec.structs.replace(s, mask=[False] * len(s.mask)) if s.episode % 4 == 2 else s for s in given.samples
    ]
    given = msgspec.structs.replace(given, samples=silent)
    assert_same(gradient(RankTrainer(config), given), plain_gradient(config, given))


def run_ranks(config: TrainConfig, batch: TrainBatch, folder: Path) -> dict[str, Tensor]:
    config = replace(config, rendezvous=f"file://{folder}/rendezvous")
    (folder / "work.json").write_bytes(msgspec.json.encode(Work(train=config, batch=batch)))
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder / "work.json"), str(rank), str(folder / "gradient.pt")],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for rank in range(config.ranks)
    ]
    errors = [worker.communicate(timeout=100)[1].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * config.ranks, "\n".join(errors)
    return torch.load(folder / "gradient.pt", weights_only=True)


@pytest.mark.parametrize(
    "stage", [0, 2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_two_ranks_with_an_odd_number_of_micro_batches_have_the_gradient_of_one(
    config: TrainConfig, batch: Callable[..., TrainBatch], tmp_path: Path, stage: int
):
    given = batch(groups=2)
    rows = RankTrainer(config)._rows(given)[0]
    if len(rows) % 2 == 0:
        given = msgspec.structs.replace(given, samples=[*given.samples, given.samples[0]])
    two = replace(config, ranks=2, zero_stage=stage, tokens_per_microbatch=1)  # pyright: ignore[reportArgumentType]
    assert_same(run_ranks(two, given, tmp_path), plain_gradient(config, given))
