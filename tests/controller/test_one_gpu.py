"""One GPU is divided by arithmetic: every byte has an owner, and what does not fit says what to lower."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rockroll.controller.config import RunConfig, TaskConfig
from rockroll.controller.one_gpu import CUDA, GRAPHS, Shape, batch_bytes, computed, shape_of, shared, split
from rockroll.engine.config import EngineConfig
from rockroll.errors import UsageError
from rockroll.train.config import TrainConfig
from rockroll.train.critic import CriticConfig, critic_config
from rockroll.train.extent import adapter_parameters, logits_bytes
from rockroll.train.lora_config import LoraConfig

G = 2**30
SMOL = Shape(parameters=134_515_008, layers=30, hidden=576, vocabulary=49152, kv=2 * 30 * 3 * 64, context=8192)
QWEN = Shape(parameters=1_543_714_304, layers=28, hidden=1536, vocabulary=151936, kv=2 * 28 * 2 * 128, context=32768)
TRAIN = TrainConfig(dtype="bfloat16", zero_stage=1, tokens_per_microbatch=16384)
ENGINE = EngineConfig(kind="vllm", dtype="bfloat16", context_length=1024, max_batch=256)


def test_a_small_model_gets_all_it_asks_for_and_leaves_the_rest() -> None:
    made = split(80 * G, SMOL, TRAIN, ENGINE)
    assert made.requests == 256 and made.memory == 256 * 1024 * SMOL.kv * 2
    assert made.trainer == SMOL.parameters * (2 + 2 + 12) + CUDA
    assert made.engine == SMOL.parameters * 2 + CUDA + GRAPHS
    assert made.trainer + made.batch + made.engine + made.memory < 80 * G
    assert 0.1 < made.share < 0.2


@pytest.mark.parametrize("gpu", [24, 40, 80, 141])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("budget", [4096, 16384])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("shape", [SMOL, QWEN])
def test_the_parts_never_exceed_the_whole(
    gpu: int, checkpointing: bool, budget: int, replicas: int, shape: Shape
) -> None:
    train = replace(TRAIN, gradient_checkpointing=checkpointing, tokens_per_microbatch=budget)
    try:
        made = split(gpu * G, shape, train, replace(ENGINE, replicas=replicas))
    except UsageError as error:
        assert "lower train tokens_per_microbatch" in error.message
        return
    assert made.trainer + made.batch + replicas * (made.engine + made.memory) <= 0.97 * gpu * G
    assert 1 <= made.requests <= 256 and 0 < made.share * replicas < 1


def test_what_does_not_fit_names_the_settings_that_help() -> None:
    with pytest.raises(UsageError, match=r"GPU of 16g: .*tokens_per_microbatch \(now 16384\) or engine context_length"):
        split(16 * G, QWEN, TRAIN, ENGINE)
    less = replace(TRAIN, gradient_checkpointing=True, tokens_per_microbatch=1024)
    with pytest.raises(UsageError) as caught:
        split(16 * G, QWEN, less, ENGINE)
    assert "gradient_checkpointing" not in caught.value.message and "adapter" in caught.value.message


def test_computing_a_layer_again_saves_what_the_paper_says() -> None:
    logits = logits_bytes(16384, SMOL.vocabulary, TRAIN)
    whole = batch_bytes(SMOL, TRAIN, 1024) - logits
    again = batch_bytes(SMOL, replace(TRAIN, gradient_checkpointing=True), 1024) - logits
    assert whole == 16384 * 30 * 34 * 576
    assert again == 16384 * (30 * 2 + 34) * 576


def test_a_second_model_and_a_second_replica_have_their_place() -> None:
    one, two = (split(80 * G, SMOL, TRAIN, ENGINE, frozen=frozen) for frozen in (0, SMOL.parameters))
    assert two.trainer - one.trainer == SMOL.parameters * 2
    critic = critic_config(
        TrainConfig(
            algorithm="ppo", dtype="bfloat16", zero_stage=1, tokens_per_microbatch=16384, critic=CriticConfig()
        ),
        10,
    )
    with_critic = split(80 * G, SMOL, TRAIN, ENGINE, critic=critic)
    assert with_critic.trainer == 2 * one.trainer, "it has gradients and moments of its own, and is a process"
    larger = split(80 * G, SMOL, TRAIN, ENGINE, critic=critic, valued=replace(SMOL, parameters=2 * SMOL.parameters))
    assert larger.trainer == 3 * one.trainer - CUDA, "one that starts from another model has that one's size"
    small = replace(TRAIN, tokens_per_microbatch=4096)
    alone, beside = (split(24 * G, SMOL, small, replace(ENGINE, replicas=n)).requests for n in (1, 2))
    assert beside < alone == 256


def test_the_loss_has_the_logits_and_their_gradient_and_no_more_of_that_size() -> None:
    assert logits_bytes(8192, QWEN.vocabulary, TRAIN) - 8192 * QWEN.vocabulary * 4 < G / 2
    full = replace(TRAIN, dtype="float32", zero_stage=0)
    assert logits_bytes(8192, QWEN.vocabulary, full) - 8192 * QWEN.vocabulary * 8 < G / 2
    assert logits_bytes(8192, QWEN.vocabulary, replace(TRAIN, objective="distill", teacher="t")) > 8192 * 151936 * 24


def test_an_adapter_alone_has_gradients_and_moments(tmp_path: Path) -> None:
    lora = replace(TRAIN, lora=LoraConfig(rank=16))
    save_file(
        {
            "model.embed.weight": torch.zeros(90, 5),
            "model.layers.0.a.weight": torch.zeros(3, 5),
            "b.1.n": torch.zeros(5),
        },
        tmp_path / "model.safetensors",
    )
    assert adapter_parameters(tmp_path, lora) == 16 * (3 + 5) and adapter_parameters(tmp_path, TRAIN) == 0
    made = split(24 * G, QWEN, replace(lora, gradient_checkpointing=True), ENGINE, adapter=18_000_000)
    assert made.trainer == (QWEN.parameters + 18_000_000) * 2 + 18_000_000 * 14 + CUDA
    with pytest.raises(UsageError, match="or train an adapter"):
        split(24 * G, QWEN, replace(TRAIN, gradient_checkpointing=True), ENGINE)


def test_the_recipes_word_counts() -> None:
    made = split(80 * G, SMOL, TRAIN, ENGINE)
    assert shared(ENGINE, made).gpu_share == made.share and shared(ENGINE, made).memory == str(made.memory)
    own = replace(ENGINE, gpu_share=0.5)
    assert shared(own, made) is own
    assert shared(replace(ENGINE, memory="1g"), made).memory == "1g"


def test_a_teacher_counts_with_its_own_size(tmp_path: Path) -> None:
    config = {
        "num_attention_heads": 1,
        "hidden_size": 5,
        "num_hidden_layers": 1,
        "vocab_size": 9,
        "max_position_embeddings": 64,
    }
    for name, rows in ("student", 3), ("teacher", 300):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        save_file({"a": torch.zeros(rows, 5)}, tmp_path / name / "model.safetensors")
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    alone = RunConfig(
        name="r", steps=1, model="student", task=TaskConfig(env="rockroll:shell"), train=TRAIN, engine=ENGINE
    )
    taught = replace(alone, train=replace(TRAIN, objective="distill", teacher="teacher"))
    copied = replace(alone, train=replace(TRAIN, kl=0.1))
    plain, with_teacher = computed(alone, student, 80 * G), computed(taught, student, 80 * G, teacher)
    assert with_teacher.trainer - plain.trainer == 300 * 5 * 2
    assert computed(copied, student, 80 * G).trainer - plain.trainer == 3 * 5 * 2, "a frozen copy"


def test_the_shape_is_read_from_the_models_folder(tmp_path: Path) -> None:
    config = {
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(3, 5)}, tmp_path / "model.safetensors")
    assert shape_of(tmp_path) == replace(SMOL, parameters=15)
