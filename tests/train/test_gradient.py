"""The gradient is that of the formula, whatever the micro-batches, ranks and ZeRO stage."""

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from rockroll.train.api import TrainBatch, TrainSample
from rockroll.train.config import TrainConfig
from rockroll.train.trainer import RankTrainer

from .gradient_worker import Work, gradient

WORKER = Path(__file__).with_name("gradient_worker.py")


def plain_gradient(config: TrainConfig, batch: TrainBatch, model: Any = None) -> dict[str, Tensor]:
    """The whole loss in one expression: a sample at a time, a token at a time, no packing, no DeepSpeed.

    model: the policy, where it is not simply config.model.
    """
    from transformers import AutoModelForCausalLM

    model = (model or AutoModelForCausalLM.from_pretrained(config.model)).eval()
    rewards = {s.episode: (s.group, s.reward) for s in batch.samples}
    losses: dict[int, list[Tensor]] = {}
    for sample in batch.samples:
        advantage = plain_advantage(config, sample, rewards)
        logp = torch.log_softmax(model(torch.tensor([sample.ids])).logits[0] / batch.temperature, -1)
        trained = [i for i, m in enumerate(sample.mask) if m]
        chosen = {i: logp[i - 1, sample.ids[i]] for i in trained}
        rho = {i: math.exp(float(chosen[i].detach()) - sample.logprobs[i]) for i in trained}
        if config.correction == "reject" and any(
            not config.correction_low <= r <= config.correction_high for r in rho.values()
        ):
            continue
        base = {i: sample.logprobs[i] if config.ratio == "direct" else float(chosen[i].detach()) for i in trained}
        for i in trained:
            if config.correction == "mask" and not config.correction_low <= rho[i] <= config.correction_high:
                continue
            weight = {
                "off": 1.0,
                "truncate": min(rho[i], config.correction_high),
                "mask": rho[i],
                "reject": 1.0,
            }[config.correction or ""]
            over = trained if config.ratio_level != "token" else [i]
            log_ratio = sum((chosen[j] - base[j] for j in over), torch.zeros(())) / (
                len(over) if config.ratio_level == "geometric" else 1
            )
            loss = weight * plain_surrogate(config, chosen[i], torch.exp(log_ratio), advantage)
            if config.entropy:
                loss = loss + config.entropy * (logp[i - 1].exp() * logp[i - 1]).sum()
            losses.setdefault(sample.episode, []).append(loss)
    tokens, episodes = sum(map(len, losses.values())), len(losses)
    loss = torch.zeros(())
    for mine in losses.values():
        denominator = {
            "token_mean": tokens,
            "sequence_mean_of_sums": episodes,
            "sequence_mean_of_means": episodes * len(mine),
            "constant_length": episodes * config.aggregation_length,
        }[config.aggregation or ""]
        loss = loss + torch.stack(mine).sum() / denominator
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def plain_advantage(config: TrainConfig, sample: TrainSample, rewards: dict[int, tuple[int, float]]) -> float:
    everyone = [r for _, r in rewards.values()]
    mine = [r for g, r in rewards.values() if g == sample.group]
    if config.advantage == "reward":
        return sample.reward
    if config.advantage == "batch":
        return (sample.reward - statistics.fmean(everyone)) / (statistics.pstdev(everyone) + 1e-8)
    if config.advantage == "leave_one_out":
        return (sample.reward - statistics.fmean(mine)) * len(mine) / (len(mine) - 1)
    std = statistics.pstdev(mine)
    return (sample.reward - statistics.fmean(mine)) / (std + 1e-6 if config.std_normalisation else 1) if std else 0.0


def plain_surrogate(config: TrainConfig, logp: Tensor, ratio: Tensor, advantage: float) -> Tensor:
    low, high = config.clip_low, config.clip_high
    if advantage < 0:
        low = low if config.clip_low_negative is None else config.clip_low_negative
        high = high if config.clip_high_negative is None else config.clip_high_negative
    assert low is not None and high is not None
    bounded = min(max(float(ratio.detach()), 1 - low), 1 + high)
    if config.surrogate == "plain":
        return -advantage * logp
    if config.surrogate == "weight":
        return -bounded * advantage * logp
    least = bounded * advantage
    return torch.tensor(-least) if least < float(ratio.detach()) * advantage else -ratio * advantage


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 1e-3
    for name, g in expected.items():
        assert torch.allclose(found[name], g, atol=2e-5 * largest), (name, float((found[name] - g).abs().max()))


def micro_batches(trainer: RankTrainer, batch: TrainBatch) -> int:
    return len(trainer.share.micro_batches(trainer._rows(batch)))


def test_the_gradient_of_one_rank_is_the_formulas(config: TrainConfig, batch: Callable[..., TrainBatch]):
    config = replace(config, entropy=0.01)
    given = batch(temperature=0.8)
    assert_same(gradient(RankTrainer(config), given), plain_gradient(config, given))


ALGORITHMS = {
    "grpo": {},
    "dr_grpo": {"aggregation_length": 32},
    "rloo": {},
    "reinforce": {},
    "reinforce_pp": {},
    "gspo": {},
    "cispo": {},
    "topr": {},
    "direct": {"algorithm": "dapo", "ratio": "direct"},
    "icepop": {"algorithm": "dapo", "correction": "mask", "correction_low": 0.7, "correction_high": 1.4},
    "reject": {"algorithm": "dapo", "correction": "reject", "correction_low": 0.55, "correction_high": 2.0},
    "topr decoupled": {"algorithm": "topr", "ratio": "decoupled"},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_gradient_of_each_algorithm_is_the_formulas(
    config: TrainConfig, batch: Callable[..., TrainBatch], name: str
):
    config = TrainConfig(
        lr=1e-2, threads=1, device="cpu", **({"model": config.model, "algorithm": name} | ALGORITHMS[name])
    )
    given = batch()
    trainer = RankTrainer(replace(config, tokens_per_microbatch=200))
    assert_same(gradient(trainer, given), plain_gradient(config, given))
    assert micro_batches(trainer, given) > 1


def test_one_two_and_four_micro_batches_have_one_gradient(
    config: TrainConfig, batch: Callable[..., TrainBatch], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rockroll.train.batch.MICRO_BATCH_PRICE", 1000)  # as few as the budget allows
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
    try:
        errors = [worker.communicate(timeout=100)[1].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()  # where one took too long, or failed while the other waits for it
            worker.wait()
    assert [worker.returncode for worker in workers] == [0] * config.ranks, "\n".join(errors)
    return torch.load(folder / "gradient.pt", weights_only=True)


@pytest.mark.parametrize(
    "stage", [0, 2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_two_ranks_with_an_odd_number_of_micro_batches_have_the_gradient_of_one(
    config: TrainConfig, batch: Callable[..., TrainBatch], tmp_path: Path, stage: int
):
    given = batch(groups=2)
    rows = RankTrainer(config)._rows(given)
    if len(rows) % 2 == 0:
        given = msgspec.structs.replace(given, samples=[*given.samples, given.samples[0]])
    two = replace(config, ranks=2, zero_stage=stage, tokens_per_microbatch=1)  # pyright: ignore[reportArgumentType]
    assert_same(run_ranks(two, given, tmp_path), plain_gradient(config, given))
