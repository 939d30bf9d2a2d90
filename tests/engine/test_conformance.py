"""The engines keep what conformance.py promises: in this process, in another, and on other architectures."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import torch
import transformers

from rockroll.engine import conformance
from rockroll.engine.client import EngineClient
from rockroll.engine.config import EngineConfig
from rockroll.engine.conformance import PROMISES, Promise, Subject
from rockroll.engine.transformers_engine import TransformersEngine

from .conftest import SHAPE, save

PROMPT = [5, 9, 33, 61, 7, 7, 80, 12, 44, 3, 91, 18, 26, 70, 55, 4, 39, 62, 10, 81, 23, 47]


def subject(engine: Any, models: Path) -> Subject:
    return Subject(engine=engine, prompt=PROMPT, weights=str(models / "first"), other_weights=str(models / "other"))


@pytest_asyncio.fixture(
    loop_scope="module",
    scope="module",
    params=["here", "without a prefix cache", "small steps", "steady", "in another process"],
)
async def engine(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Any]:
    config = EngineConfig(model=str(models / "first"))
    if request.param == "in another process":
        folder = tmp_path_factory.mktemp("run")
        config = EngineConfig(model=str(models / "first"), address=f"ipc://{folder}/engine")
        (folder / "engine.json").write_bytes(msgspec.json.encode(config))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rockroll.engine.server", "--config", str(folder / "engine.json")
        )
        client = await EngineClient.connect(config.address)
        yield client
        await client.close()
        process.terminate()
        assert await process.wait() == 0
        assert not (folder / "engine").exists(), "the socket is left"
        return
    if request.param == "without a prefix cache":
        config = EngineConfig(model=str(models / "first"), prefix_cache=0, max_batch=4)
    if request.param == "small steps":
        config = EngineConfig(model=str(models / "first"), prefill_tokens=7, prefix_cache=2, max_batch=3)
    if request.param == "steady":
        config = EngineConfig(model=str(models / "first"), deterministic=True, max_batch=16)
    engine = await TransformersEngine.open(config)
    yield engine
    await engine.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
async def test_promise(promise: Promise, engine: Any, models: Path) -> None:
    await promise(subject(engine, models))


ARCHITECTURES = {
    "Qwen2 with a sliding window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}),
    "Mistral": ("Mistral", {"sliding_window": 13}),
    "GPT-2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 160}),
    "Qwen3": ("Qwen3", {"head_dim": 32}),
    "Gemma": ("Gemma", {"head_dim": 32}),
    "Qwen3 MoE, whose file names its tensors otherwise": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
async def test_architecture(name: str, tmp_path: Path) -> None:
    family, changes = ARCHITECTURES[name]
    config = getattr(transformers, f"{family}Config")(**(SHAPE | changes))
    model = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")
    for seed, folder in enumerate(("first", "other")):
        torch.manual_seed(seed)
        save(model(config), tmp_path / folder)
    engine = await TransformersEngine.open(EngineConfig(model=str(tmp_path / "first")))
    try:
        await conformance.check(subject(engine, tmp_path))
    finally:
        await engine.close()
