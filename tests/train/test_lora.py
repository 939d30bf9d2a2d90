"""LoRA: the adapter is trained and nothing else, exactly; every file it leaves is one that others load."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from rockroll.digest import Digest, digest_file
from rockroll.errors import TrainError
from rockroll.train import lora
from rockroll.train.api import TrainBatch
from rockroll.train.config import TrainConfig
from rockroll.train.lora_config import LoraConfig
from rockroll.train.objective import frozen
from rockroll.train.objectives.dpo import DpoObjective
from rockroll.train.objectives.policy import PolicyObjective
from rockroll.train.shards import shards
from rockroll.train.trainer import RankTrainer

from .gradient_worker import gradient
from .test_gradient import assert_same, plain_gradient, run_ranks

Batch = Callable[..., TrainBatch]
IDS = [5, 9, 33, 2, 2, 61]


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def adapted(config: TrainConfig) -> TrainConfig:
    return replace(config, lora=LoraConfig(rank=4, alpha=8))


def with_peft(config: TrainConfig, adapter: Path) -> Any:
    """The model as anybody would put it together: transformers' model and peft's adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(config.model)
    return PeftModel.from_pretrained(base, str(adapter), is_trainable=True)


def logprobs(model: Any) -> list[float]:
    with torch.no_grad():
        logp = torch.log_softmax(model.eval()(torch.tensor([IDS])).logits[0, :-1], -1)
    return [float(logp[i, IDS[i + 1]]) for i in range(len(IDS) - 1)]


def transformers_logprobs(path: Path) -> list[float]:
    from transformers import AutoModelForCausalLM

    return logprobs(AutoModelForCausalLM.from_pretrained(path))


def adapter_of(trainer: RankTrainer) -> str:
    seen = Digest()
    for name, tensor in trainer.adapter():
        seen.add(name, tensor)
    return seen.hex()


@pytest.mark.parametrize("stage", [0, slow(1), slow(2), 3])
def test_the_gradient_is_that_of_plain_pytorch_and_peft(adapted: TrainConfig, batch: Batch, tmp_path: Path, stage: int):
    config = replace(adapted, zero_stage=stage, tokens_per_microbatch=200, gradient_checkpointing=stage > 1)  # pyright: ignore[reportArgumentType]
    trainer = RankTrainer(config)
    trainer.step(batch(0))  # B leaves 0: A has a gradient, too
    trainer.save(str(tmp_path / "step_1"))
    given = batch(1)
    expected = plain_gradient(config, given, with_peft(config, tmp_path / "step_1" / "adapter"))
    found = gradient(trainer, given)
    assert_same({f"base_model.model.{name}": grad for name, grad in found.items()}, expected)
    assert len(found) == 2 * 7 * 2  # A and B of seven linear layers, twice


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_one_of_them_idle_have_the_gradient_of_one(
    adapted: TrainConfig, batch: Batch, tmp_path: Path, stage: int
):
    """With a KL: its reference is gathered by both ranks, also where one has a stand-in for a missing micro-batch."""
    from transformers import AutoModelForCausalLM

    config = replace(adapted, kl=0.1, ranks=2, zero_stage=stage, tokens_per_microbatch=1)  # pyright: ignore[reportArgumentType]
    given = batch(groups=2)
    rows = RankTrainer(adapted)._rows(given)
    if len(rows) % 2 == 0:
        given = msgspec.structs.replace(given, samples=[*given.samples, given.samples[0]])
    model = AutoModelForCausalLM.from_pretrained(config.model)
    assert config.lora is not None
    lora.adapt(model, config.lora, config.seed)
    assert_same(run_ranks(config, given, tmp_path), plain_gradient(config, given, model))


def test_the_start_is_the_frozen_model_and_it_stays_frozen(adapted: TrainConfig, batch: Batch):
    trainer = RankTrainer(adapted)
    start = transformers_logprobs(Path(adapted.model))
    assert trainer.logprobs(IDS) == pytest.approx(start, abs=1e-6)
    for step in range(3):
        trainer.step(batch(step))
    assert trainer.logprobs(IDS) != pytest.approx(start, abs=1e-2)
    with lora.off(trainer.model):
        assert trainer.logprobs(IDS) == pytest.approx(start, abs=1e-6)
    assert trainer.step(batch(3)).metrics["loss/grad_norm"] > 0  # and it trains on


@pytest.mark.parametrize(
    ("stage", "where"), [(0, "reward"), slow(0, "loss"), slow(2, "loss"), (3, "loss"), slow(3, "reward")]
)
def test_the_kl_is_to_the_base_and_needs_no_second_model(adapted: TrainConfig, batch: Batch, stage: int, where: str):
    low = replace(adapted, kl=0.1, kl_in=where, zero_stage=stage, lr=3e-3)  # pyright: ignore[reportArgumentType]
    trainer = RankTrainer(low)
    assert isinstance(trainer.objective, PolicyObjective) and trainer.objective.reference is None
    found = [trainer.step(batch(0)).metrics["loss/kl"] for _ in range(4)]
    second = RankTrainer(replace(low, zero_stage=0))
    assert isinstance(second.objective, PolicyObjective)
    second.objective.reference = frozen(low.model, second.share)  # the same model, loaded once more
    expected = [second.step(batch(0)).metrics["loss/kl"] for _ in range(4)]
    assert found[0] == pytest.approx(0.0, abs=1e-6) and found[-1] > 1e-4
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("stage", [0, slow(2), slow(3)])
def test_preferences_are_against_the_base_and_need_no_second_model(adapted: TrainConfig, batch: Batch, stage: int):
    both = batch(0, groups=4).samples
    pairs = [
        msgspec.structs.replace(sample, group=n // 2, episode=n, reward=float(n % 2 == 0))
        for n, sample in enumerate(both[: len(both) // 2 * 2])
    ]
    given = TrainBatch(step=0, samples=pairs)
    low = replace(adapted, objective="dpo", zero_stage=stage, lr=3e-3, tokens_per_microbatch=200)  # pyright: ignore[reportArgumentType]
    trainer = RankTrainer(low)
    assert isinstance(trainer.objective, DpoObjective) and trainer.objective.reference is None
    found = [trainer.step(given).metrics for _ in range(4)]
    second = RankTrainer(replace(low, zero_stage=0))
    assert isinstance(second.objective, DpoObjective)
    second.objective.reference = frozen(low.model, second.share)  # the same model, loaded once more
    expected = [second.step(given).metrics for _ in range(4)]
    assert found[0]["loss/dpo"] == pytest.approx(math.log(2), abs=1e-5) and found[-1]["loss/margin"] > 1e-3
    for name in ("loss/dpo", "loss/margin", "loss/reward_chosen"):
        assert [m[name] for m in found] == pytest.approx([m[name] for m in expected], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("stage", [slow(0), 3])
def test_an_export_is_the_merged_model_and_proves_itself(
    adapted: TrainConfig, batch: Batch, tmp_path: Path, stage: int
):
    trainer = RankTrainer(replace(adapted, zero_stage=stage))  # pyright: ignore[reportArgumentType]
    trainer.step(batch())
    exported = trainer.export(str(tmp_path / "v1"))
    assert exported is not None
    assert transformers_logprobs(tmp_path / "v1") == pytest.approx(trainer.logprobs(IDS), abs=1e-5)
    assert exported.digest == digest_file(tmp_path / "v1" / "model.safetensors")
    plain = RankTrainer(replace(adapted, lora=None)).export(str(tmp_path / "v0"))
    assert plain is not None and plain.tensors == exported.tensors and plain.digest != exported.digest


def test_a_checkpoint_holds_the_merged_model_and_an_adapter_that_peft_loads(
    adapted: TrainConfig, batch: Batch, tmp_path: Path
):
    trainer = RankTrainer(adapted)
    trainer.step(batch())
    trainer.save(str(tmp_path / "step_1"))
    expected = pytest.approx(trainer.logprobs(IDS), abs=1e-5)
    assert transformers_logprobs(tmp_path / "step_1" / "model") == expected
    assert logprobs(with_peft(adapted, tmp_path / "step_1" / "adapter")) == expected
    told = json.loads((tmp_path / "step_1" / "adapter" / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["base_model_name_or_path"]) == (4, 8, adapted.model)
    assert (tmp_path / "step_1" / "model" / "tokenizer.json").is_file()


@pytest.mark.parametrize("stage", [0, slow(1), slow(2), slow(3)])
def test_two_steps_saved_and_loaded_and_two_more_are_bit_equal_to_four(
    adapted: TrainConfig, batch: Batch, tmp_path: Path, stage: int
):
    assert adapted.lora is not None
    config = replace(adapted, zero_stage=stage, lora=replace(adapted.lora, dropout=0.2))  # pyright: ignore[reportArgumentType]
    straight = RankTrainer(config)
    torch.manual_seed(1)
    for step in range(2):
        straight.step(batch(step))
    straight.save(str(tmp_path / "step_2"))
    for step in (2, 3):
        straight.step(batch(step))

    after = RankTrainer(config)
    assert after.load(str(tmp_path / "step_2")) == 2
    for step in (2, 3):
        after.step(batch(step))
    assert adapter_of(after) == adapter_of(straight)


def test_an_adapter_goes_on_at_another_stage(adapted: TrainConfig, batch: Batch, tmp_path: Path):
    trainer = RankTrainer(replace(adapted, zero_stage=3))
    trainer.step(batch(0))
    trainer.save(str(tmp_path / "step_1"))
    after = RankTrainer(replace(adapted, zero_stage=2))
    after.load(str(tmp_path / "step_1"))
    assert adapter_of(after) == adapter_of(trainer)
    losses = [t.step(batch(1)).metrics["loss/grad_norm"] for t in (trainer, after)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_bfloat16_trains_the_adapter_at_every_stage_that_takes_it(adapted: TrainConfig, batch: Batch, tmp_path: Path):
    for stage in (1, 2, 3):
        trainer = RankTrainer(replace(adapted, zero_stage=stage, dtype="bfloat16"))  # pyright: ignore[reportArgumentType]
        before = trainer.logprobs(IDS)
        report = trainer.step(batch())
        assert trainer.logprobs(IDS) != before and report.metrics["loss/grad_norm"] > 0
        exported = trainer.export(str(tmp_path / "v1"))
        assert exported is not None and exported.digest == digest_file(tmp_path / "v1" / "model.safetensors")


def test_only_the_adapter_costs_gradients_and_moments(adapted: TrainConfig, config: TrainConfig, batch: Batch):
    def held(config: TrainConfig) -> int:
        trainer = RankTrainer(config)
        trainer.step(batch())
        return sum(shard.length for shard in shards(trainer.engine, config.zero_stage, 0))

    assert held(replace(adapted, zero_stage=2)) == 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert held(replace(config, zero_stage=2)) == RankTrainer(config).parameters


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (("qproj",), "qproj cannot be adapted in this model; its linear layers end in down_proj, gate_proj, k_proj"),
        (("embed_tokens",), "embed_tokens is of type Embedding, no linear layer; name down_proj"),
        (("lm_head",), "lm_head shares its weight with another layer"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(adapted: TrainConfig, targets: tuple[str, ...], says: str):
    with pytest.raises(TrainError, match=says):
        RankTrainer(replace(adapted, lora=LoraConfig(rank=4, targets=targets)))


def test_named_targets_alone_are_adapted(adapted: TrainConfig):
    trainer = RankTrainer(replace(adapted, lora=LoraConfig(rank=4, targets=("q_proj", "v_proj"))))
    assert len(lora.adapted(trainer.model)) == 4


def test_a_checkpoint_of_another_adapter_or_base_is_refused(adapted: TrainConfig, tmp_path: Path):
    RankTrainer(adapted).save(str(tmp_path / "a"))
    for other, says in (
        (replace(adapted, lora=LoraConfig(rank=8, alpha=8)), "was made with train lora: .*'rank': 4.*this run has"),
        (replace(adapted, lora=None), "was made with train lora: .*, this run has None; set it back"),
    ):
        with pytest.raises(TrainError, match=says):
            RankTrainer(other).load(str(tmp_path / "a"))
    moved = tmp_path / "moved"
    shutil.copytree(adapted.model, moved)
    same = RankTrainer(replace(adapted, model=str(moved)))
    assert same.load(str(tmp_path / "a")) == 0
    data = bytearray((moved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (moved / "model.safetensors").write_bytes(data)
    with pytest.raises(TrainError, match=r"holds an adapter of other weights than those of .*moved"):
        RankTrainer(replace(adapted, model=str(moved))).load(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rank": 0}, r"rank must be at least 1 \(8 to 64 is usual\); got 0"),
        ({"alpha": 0}, "alpha must be over 0"),
        ({"dropout": 1}, r"dropout must be in \[0, 1\); got 1"),
        ({"targets": "q_proj"}, r"targets must be all-linear or a list of layer names .*; got 'q_proj'"),
        ({"targets": ()}, "targets must name at least one layer"),
    ],
)
def test_a_wrong_setting_is_refused(fields: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        LoraConfig(**fields)
