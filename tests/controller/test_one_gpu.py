"""One GPU is divided by arithmetic: every byte has an owner, and what does not fit says what to lower."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rockroll.controller.one_gpu import CUDA, GRAPHS, Shape, batch_bytes, shape_of, shared, split
from rockroll.engine.config import EngineConfig
from rockroll.errors import UsageError
from rockroll.train.config import TrainConfig

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
    whole = batch_bytes(SMOL, TRAIN, 1024) - 16384 * SMOL.vocabulary * 10
    again = batch_bytes(SMOL, replace(TRAIN, gradient_checkpointing=True), 1024) - 16384 * SMOL.vocabulary * 10
    assert whole == 16384 * 30 * 34 * 576
    assert again == 16384 * (30 * 2 + 34) * 576


def test_a_second_model_and_a_second_replica_have_their_place() -> None:
    one, two = (split(80 * G, SMOL, TRAIN, ENGINE, models=models) for models in (1, 2))
    assert two.trainer - one.trainer == SMOL.parameters * 2
    small = replace(TRAIN, tokens_per_microbatch=4096)
    alone, beside = (split(24 * G, SMOL, small, replace(ENGINE, replicas=n)).requests for n in (1, 2))
    assert beside < alone == 256


def test_the_recipes_word_counts() -> None:
    made = split(80 * G, SMOL, TRAIN, ENGINE)
    assert shared(ENGINE, made).gpu_share == made.share and shared(ENGINE, made).memory == str(made.memory)
    own = replace(ENGINE, gpu_share=0.5)
    assert shared(own, made) is own
    assert shared(replace(ENGINE, memory="1g"), made).memory == "1g"


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
