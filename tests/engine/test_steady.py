"""The steady engine: a request's tokens and log-probs are the same bits whatever else is under way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import transformers

from rockroll.engine.api import GenerateRequest, Generation
from rockroll.engine.config import EngineConfig
from rockroll.engine.transformers_engine import TransformersEngine

from .conftest import SHAPE, llama, save

DRAW = random.Random(3)


def request(number: int, length: int, tokens: int, temperature: float = 1.0, top_p: float = 1.0) -> GenerateRequest:
    prompt = [random.Random(number).randrange(3, 96) for _ in range(length)]
    return GenerateRequest(
        id=str(number), prompt_ids=prompt, max_tokens=tokens, seed=number, temperature=temperature, top_p=top_p
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(models: Path) -> AsyncIterator[TransformersEngine]:
    engine = await TransformersEngine.open(EngineConfig(model=str(models / "first"), deterministic=True, max_batch=20))
    yield engine
    await engine.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_company_changes_no_bit(engine: TransformersEngine) -> None:
    wanted = [request(n, DRAW.randrange(2, 100), DRAW.randrange(1, 50)) for n in range(16)]
    wanted += [request(n, 30, 20, temperature=0.0) for n in range(40, 43)]
    wanted += [request(n, 30, 20, temperature=0.7, top_p=0.8) for n in range(44, 47)]
    alone = [await engine.generate(each) for each in wanted]

    async def late(each: GenerateRequest) -> Generation:
        for _ in range(DRAW.randrange(200)):
            await asyncio.sleep(0)
        return await engine.generate(each)

    for _ in range(2):
        order = list(range(len(wanted)))
        DRAW.shuffle(order)
        together = await asyncio.gather(*(late(wanted[i]) for i in order))
        assert [together[order.index(i)] for i in range(len(wanted))] == alone


async def test_a_window_and_shared_heads_are_the_model_s_own(tmp_path: Path) -> None:
    """The engine's own check compares with one full forward and refuses what is apart."""
    config = transformers.MistralConfig(**(SHAPE | {"sliding_window": 8}))
    for folder in (
        save(transformers.MistralForCausalLM(config), tmp_path / "mistral"),
        llama(tmp_path / "llama", num_key_value_heads=1),
    ):
        engine = await TransformersEngine.open(EngineConfig(model=str(folder), deterministic=True, max_batch=4))
        prompt = request(1, 40, 30)
        got = await engine.generate(prompt)
        full = await engine.logprobs([*prompt.prompt_ids, *got.token_ids])
        await engine.close()
        assert max(abs(a - b) for a, b in zip(full[39:], got.logprobs, strict=True)) < 1e-4


def test_more_threads_are_refused(models: Path) -> None:
    with pytest.raises(ValueError, match="threads must be 1 where the run is deterministic"):
        EngineConfig(model=str(models / "first"), deterministic=True, threads=2)
