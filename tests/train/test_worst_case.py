"""The worst-case step: it takes what the longest batch takes, changes nothing, and fails with what to lower."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rockroll import available
from rockroll.errors import TrainError
from rockroll.train import memory
from rockroll.train.algorithm import PRESETS
from rockroll.train.api import TrainBatch
from rockroll.train.config import TrainConfig
from rockroll.train.extent import context_of, parameters_of, state_bytes, widest
from rockroll.train.trainer import RankTrainer
from tests.train.digests import digest_of

Batch = Callable[..., TrainBatch]


def optimizer_state(trainer: RankTrainer) -> list[dict[str, Any]]:
    optimizer = getattr(trainer.engine.optimizer, "optimizer", trainer.engine.optimizer)
    state = [
        {k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()}
        for s in optimizer.state_dict()["state"].values()
    ]
    return [*state, *({"lr": group["lr"]} for group in optimizer.param_groups)]


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return [s.keys() for s in a] == [s.keys() for s in b] and all(
        torch.equal(x[k], y[k]) if isinstance(x[k], Tensor) else x[k] == y[k]
        for x, y in zip(a, b, strict=True)
        for k in x
    )


CASES = {
    "stage 0": {},
    "stage 2": {"zero_stage": 2},
    "stage 1, bfloat16": {"zero_stage": 1, "dtype": "bfloat16"},
    "with a reference and a filter": {"kl": 0.1, "kl_target": 0.05, "correction": "mask", "weight_decay": 0.1},
    "gradient checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize(
    "case",
    [
        "stage 0",
        "stage 2",
        "with a reference and a filter",
        pytest.param("stage 1, bfloat16", marks=pytest.mark.slow),
        pytest.param("gradient checkpointing", marks=pytest.mark.slow),
    ],
)
def test_it_leaves_weights_optimizer_random_state_and_the_next_step_bit_equal(
    config: TrainConfig, batch: Batch, case: str
):
    config = replace(config, tokens_per_microbatch=300, **CASES[case])
    trainer, other = RankTrainer(config), RankTrainer(config)
    weights, state, drawn = digest_of(trainer), optimizer_state(trainer), torch.get_rng_state()
    done = trainer.worst_case(100)
    assert (done.rows, done.length) == (3, 100) and done.peak_bytes > 1e6
    assert digest_of(trainer) == weights
    assert same(optimizer_state(trainer), state)
    assert torch.equal(torch.get_rng_state(), drawn)
    for step in range(2):
        report, expected = trainer.step(batch(step)), other.step(batch(step))
        assert report.version == expected.version == step + 1
        assert {k: v for k, v in report.metrics.items() if not k.startswith("time/")} == {
            k: v for k, v in expected.metrics.items() if not k.startswith("time/")
        }
    assert digest_of(trainer) == digest_of(other)
    assert same(optimizer_state(trainer), optimizer_state(other))
    with pytest.raises(TrainError, match="this trainer has made 2 updates"):
        trainer.worst_case(100)


def test_a_sequence_is_never_longer_than_the_models_context(config: TrainConfig):
    done = RankTrainer(replace(config, tokens_per_microbatch=64)).worst_case(0)
    assert (done.rows, done.length) == (1, 128)


@given(st.integers(2, 300), st.integers(1, 2000), st.integers(1, 3), st.integers(1, 300))
def test_no_micro_batch_that_a_plan_may_hold_is_much_larger(longest: int, budget: int, rows: int, length: int):
    length = min(length, longest)
    shapes = widest(longest, budget)
    if rows == 1 or rows * length <= budget:
        assert rows * length <= 1.05 * max(n * m for n, m in shapes) + 1
    assert all(n == 1 or n * m <= budget for n, m in shapes) and shapes[0][1] == longest


def test_memory_that_does_not_suffice_is_an_error_that_names_what_to_lower(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    trainer = RankTrainer(replace(config, tokens_per_microbatch=500_000))
    before = trainer.logprobs([1, 2, 3])
    monkeypatch.setattr(memory, "available", lambda: 150_000_000)
    says = r"does not fit into the memory.*lower train tokens_per_microbatch \(now 500000\), or set train gradient_ch"
    with pytest.raises(TrainError, match=says) as caught:
        trainer.worst_case(0)
    assert "\n" not in str(caught.value)
    assert trainer.logprobs([1, 2, 3]) == before


def test_where_one_sequence_is_too_long_its_length_is_what_to_lower(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    trainer = RankTrainer(replace(config, tokens_per_microbatch=64, gradient_checkpointing=True))
    monkeypatch.setattr(trainer, "_loss", full)
    with pytest.raises(TrainError, match=r"1 × 128 tokens.*2 GiB.*lower engine context_length \(now 128\), so"):
        trainer.worst_case(0)


@pytest.mark.parametrize("kind", ["v2", "v1", "none"])
def test_what_is_available_is_what_the_cgroup_leaves_its_page_cache_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr(available, "CGROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    for name, text in {
        "v2": {"memory.max": "5000", "memory.current": "4000", "memory.stat": "inactive_file 100\nactive_file 20\n"},
        "v1": {
            "memory/memory.limit_in_bytes": "5000",
            "memory/memory.usage_in_bytes": "4000",
            "memory/memory.stat": "inactive_file 1\nactive_file 1\ntotal_inactive_file 100\ntotal_active_file 20\n",
        },
        "none": {"memory.max": "max"},
    }[kind].items():
        (tmp_path / name).write_text(text)
    assert available.available() == 1120 if kind != "none" else available.available() > 1e6


@pytest.mark.parametrize(
    "algorithm", [name if name == "gigpo" else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_every_algorithm_has_one(config: TrainConfig, algorithm: str):
    options = {"aggregation_length": 8} if algorithm == "dr_grpo" else {}
    given = TrainConfig(model=config.model, threads=1, device="cpu", algorithm=algorithm, **options)  # type: ignore[arg-type]
    trainer = RankTrainer(given)
    weights = digest_of(trainer)
    assert trainer.worst_case(0).rows == 64
    assert digest_of(trainer) == weights


@pytest.mark.parametrize("objective", ["sft", "dpo", "distill"])
def test_every_objective_has_one(config: TrainConfig, objective: str):
    teacher = config.model if objective == "distill" else ""
    trainer = RankTrainer(replace(config, objective=objective, teacher=teacher))  # pyright: ignore[reportArgumentType]
    weights = digest_of(trainer)
    assert trainer.worst_case(0).rows == 64
    assert digest_of(trainer) == weights


def test_what_ran_out_of_memory_is_told_from_other_errors():
    assert memory.ran_out(MemoryError())
    assert memory.ran_out(torch.OutOfMemoryError("CUDA out of memory"))
    assert memory.ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert not memory.ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("settings", "bytes_each"),
    [
        ({}, 16),
        ({"zero_stage": 1, "dtype": "bfloat16"}, 16),
        ({"zero_stage": 1, "dtype": "bfloat16", "ranks": 4}, 7),
        ({"zero_stage": 2, "dtype": "bfloat16", "ranks": 4}, 5.5),
        ({"zero_stage": 3, "dtype": "bfloat16", "ranks": 4}, 4),
    ],
)
def test_what_a_rank_holds_by_hand(settings: dict[str, Any], bytes_each: float):
    assert state_bytes(1000, TrainConfig(**settings)) == 1000 * bytes_each


def test_a_folder_says_how_large_its_model_is(config: TrainConfig, model_path: Path):
    assert parameters_of(model_path) == RankTrainer(config).parameters
    assert context_of(model_path) == 128
