"""What a step does to the policy, and what it says about it. Real DeepSpeed, one rank in this process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from rockroll.errors import TrainError
from rockroll.train.api import TrainBatch
from rockroll.train.config import TrainConfig
from rockroll.train.trainer import RankTrainer

Batch = Callable[..., TrainBatch]


def sampled(trainer: RankTrainer, batch: TrainBatch, off: float = 0.0) -> TrainBatch:
    """The batch with the log-probs an engine with these weights, `off` apart, would have reported."""
    samples = []
    for s in batch.samples:
        logp = [0.0, *trainer.logprobs(s.ids)]
        told = [x + off if m else 0.0 for x, m in zip(logp, s.mask, strict=True)]
        samples.append(msgspec.structs.replace(s, logprobs=told))
    return msgspec.structs.replace(batch, samples=samples)


def mean_logprob(trainer: RankTrainer, batch: TrainBatch, reward: float) -> float:
    found = [
        x
        for s in batch.samples
        if s.reward == reward
        for x, m in zip(trainer.logprobs(s.ids), s.mask[1:], strict=True)
        if m
    ]
    return sum(found) / len(found)


def test_training_raises_the_logprob_of_rewarded_samples_and_lowers_the_others(config: TrainConfig, batch: Batch):
    trainer = RankTrainer(config)
    given = sampled(trainer, batch())
    before = mean_logprob(trainer, given, 1.0), mean_logprob(trainer, given, 0.0)
    for step in range(3):
        trainer.step(msgspec.structs.replace(given, step=step))
    assert mean_logprob(trainer, given, 1.0) > before[0] + 0.1
    assert mean_logprob(trainer, given, 0.0) < before[1] - 0.1


def test_logprobs_are_those_of_transformers(config: TrainConfig):
    from transformers import AutoModelForCausalLM

    ids = [3, 60, 7, 7, 12, 1]
    model = AutoModelForCausalLM.from_pretrained(config.model).eval()
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1], -1)
    assert RankTrainer(config).logprobs(ids) == pytest.approx(
        [float(expected[i, ids[i + 1]]) for i in range(len(ids) - 1)], abs=1e-5
    )


@pytest.mark.parametrize("updates", [{}, {"epochs": 2, "minibatches": 3}])
def test_recomputed_logprobs_match_the_engines_at_the_start_of_a_step(
    config: TrainConfig, batch: Batch, updates: dict[str, int]
):
    trainer = RankTrainer(replace(config, **updates))  # pyright: ignore[reportArgumentType]
    metrics = trainer.step(sampled(trainer, batch())).metrics
    assert metrics["logp_diff/max_abs"] < 1e-5
    assert metrics["loss/correction_mean"] == pytest.approx(1.0, abs=1e-5)


def test_logprobs_are_compared_at_the_sampling_temperature(config: TrainConfig, batch: Batch):
    trainer = RankTrainer(config)
    cold = msgspec.structs.replace(sampled(trainer, batch()), temperature=0.5)
    assert trainer.step(cold).metrics["logp_diff/max_abs"] > 1e-3  # these were told at temperature 1


def test_what_later_updates_changed_is_no_difference_from_the_engine(config: TrainConfig, batch: Batch):
    trainer = RankTrainer(replace(config, ratio="direct", correction="off", minibatches=3))
    assert trainer.step(sampled(trainer, batch())).metrics["logp_diff/max_abs"] < 1e-5


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_no_number_ends_the_run_though_the_loss_is_one(
    config: TrainConfig, batch: Batch, stage: int
):
    trainer = RankTrainer(replace(config, zero_stage=stage))  # pyright: ignore[reportArgumentType]
    plain = trainer.objective.loss

    def steep(outputs: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return plain(outputs, *args, **options) + (outputs.sum() * 0).sqrt()  # 0, with a slope of 0 · ∞

    trainer.objective.loss = steep
    with pytest.raises(TrainError, match=r"gradient's norm is (nan|inf).*last checkpoint with a lower train lr"):
        trainer.step(batch())
    assert trainer.updates == 0


def test_an_engine_that_is_off_shows_in_the_metrics_and_is_capped(config: TrainConfig, batch: Batch):
    trainer = RankTrainer(config)
    metrics = trainer.step(sampled(trainer, batch(), off=-1.0)).metrics
    assert metrics["logp_diff/mean_abs"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["logp_diff/max_abs"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["loss/correction_mean"] == 2.0
    assert metrics["loss/correction_bounded_fraction"] == 1.0


def test_the_report_counts_tokens_versions_and_updates(config: TrainConfig, batch: Batch):
    given = batch()
    trainer = RankTrainer(replace(config, version=7, minibatches=2, tokens_per_microbatch=128))
    report = trainer.step(given)
    assert report.version == trainer.version == 8
    assert report.metrics["tokens/trained"] == sum(sum(s.mask) for s in given.samples)
    assert report.metrics["loss/updates"] == 2
    assert 0 <= report.metrics["tokens/padding_fraction"] < 0.5
    assert report.metrics["loss/entropy"] == pytest.approx(4.1, abs=0.2)  # nearly uniform over 64 tokens
    assert report.metrics["loss/grad_norm"] > 0


@pytest.mark.parametrize("stage", [0, 2])
def test_the_gradient_norm_is_told_before_clipping(config: TrainConfig, batch: Batch, stage: int):
    norms = [
        RankTrainer(replace(config, zero_stage=stage, grad_clip=clip)).step(batch()).metrics["loss/grad_norm"]  # pyright: ignore[reportArgumentType]
        for clip in (0.0, 1e-3)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0.01


def test_later_updates_of_a_step_move_the_ratio_and_meet_the_clip(config: TrainConfig, batch: Batch):
    metrics = RankTrainer(replace(config, epochs=4, minibatches=2)).step(batch()).metrics
    assert metrics["loss/approx_kl"] > 1e-4 and metrics["loss/clip_fraction"] > 0
    assert RankTrainer(config).step(batch()).metrics["loss/ratio_mean"] == pytest.approx(1.0, abs=1e-6)


def test_kl_is_zero_at_the_start_model_and_holds_the_policy_near_it(config: TrainConfig, batch: Batch):
    def drift(kl: float) -> list[float]:
        trainer = RankTrainer(replace(config, kl=kl, lr=3e-3))
        return [trainer.step(batch()).metrics["loss/kl"] for _ in range(15)]

    held, free = drift(5.0), drift(1e-9)
    assert held[0] == pytest.approx(0.0, abs=1e-6)
    assert 0 < held[-1] < free[-1] / 2


def test_an_entropy_bonus_keeps_entropy_up(config: TrainConfig, batch: Batch):
    ends = []
    for bonus in (0.0, 1.0):
        trainer = RankTrainer(replace(config, entropy=bonus, lr=3e-2))
        ends.append([trainer.step(batch()).metrics["loss/entropy"] for _ in range(8)][-1])
    assert ends[1] > ends[0] + 0.05


def test_the_learning_rate_warms_up_over_updates(config: TrainConfig, batch: Batch):
    trainer = RankTrainer(replace(config, warmup_steps=4))
    rates = [trainer.step(batch(i)).metrics["loss/lr"] for i in range(6)]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


@pytest.mark.parametrize("stage", [1, 2])
def test_bfloat16_trains(config: TrainConfig, batch: Batch, stage: int):
    trainer = RankTrainer(replace(config, dtype="bfloat16", zero_stage=stage))  # pyright: ignore[reportArgumentType]
    given = sampled(trainer, batch())
    before = mean_logprob(trainer, given, 1.0)
    for step in range(3):
        report = trainer.step(msgspec.structs.replace(given, step=step))
    assert mean_logprob(trainer, given, 1.0) > before + 0.05
    assert report.metrics["loss/grad_norm"] > 0


def change(batch: TrainBatch, **fields: object) -> TrainBatch:
    return msgspec.structs.replace(batch, samples=[msgspec.structs.replace(s, **fields) for s in batch.samples])


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (
            lambda b: change(b, mask=[False] * 3, ids=[1, 2, 3], logprobs=[0.0] * 3),
            "none of .* samples has a sampled token",
        ),
        (lambda b: msgspec.structs.replace(b, samples=[]), "none of 0 samples"),
        (lambda b: change(b, ids=[99] * 4, mask=[False, True] * 2, logprobs=[0.0] * 4), "0 to 63; got 99"),
        (lambda b: msgspec.structs.replace(b, temperature=0.0), "temperature must be over 0"),
        (
            lambda b: msgspec.structs.replace(b, samples=[s for s in b.samples if s.episode < 5]),
            r"groups \[1\] have one",
        ),
        (lambda b: change(b, episode=0), "share its group and reward"),
        (lambda b: change(b, reward=float("nan")), "reward must be a finite number"),
    ],
)
def test_a_batch_that_cannot_be_trained_is_refused_and_changes_nothing(
    config: TrainConfig, batch: Batch, broken: Callable[[TrainBatch], TrainBatch], says: str
):
    trainer = RankTrainer(config)
    before = trainer.logprobs([1, 2, 3])
    with pytest.raises(TrainError, match=says):
        trainer.step(broken(batch()))
    assert trainer.logprobs([1, 2, 3]) == before and trainer.version == 0


def test_a_path_without_a_model_is_refused_in_one_line(config: TrainConfig, tmp_path: Path):
    for path, says in ((tmp_path / "nowhere", "is not a folder"), (tmp_path, "has no config.json"), ("", "empty path")):
        with pytest.raises(TrainError, match=says) as caught:
            RankTrainer(replace(config, model=str(path)))
        assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(TrainError, match="does not load"):
        RankTrainer(replace(config, model=str(tmp_path)))
