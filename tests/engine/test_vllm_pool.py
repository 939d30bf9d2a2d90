"""vLLM behind the pool: a delivery that went wrong is caught at once, a replacement has the weights, fullness is told.

One replica with room for some 1,000 tokens serves all tests; it is killed once. Skipped where vLLM is not installed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from rockroll.controller.replicas import open_pool
from rockroll.digest import digest_file
from rockroll.engine import vllm_versions
from rockroll.engine.api import GenerateRequest, Stats
from rockroll.engine.config import EngineConfig
from rockroll.engine.pool import EnginePool
from rockroll.errors import CanaryError, EngineError
from rockroll.placement.local import Processes
from rockroll.placement.needs import Needs

from .test_conformance import PROMPT
from .test_vllm import SMALL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(vllm_versions.installed() is None, reason="vLLM is not installed: scripts/setup --vllm"),
    pytest.mark.asyncio(loop_scope="module"),
]
TENSOR = "model.layers.1.mlp.up_proj.weight"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool(vllm_models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EnginePool]:
    home, logs = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ROCKROLL_HOME", str(home))
        config = EngineConfig(model=str(vllm_models / "first"), **(SMALL | {"memory": "1m"}))  # type: ignore[arg-type]
        async with Processes(logs) as processes:
            made = await open_pool(config, Needs(), processes)
            try:
                await processes.guard(made.info())
                yield made
            finally:
                await made.close()


async def test_a_delivery_that_went_wrong_is_caught_at_once(
    pool: EnginePool, vllm_models: Path, tmp_path: Path
) -> None:
    good = digest_file(vllm_models / "other" / "model.safetensors")
    before = await pool.logprobs(PROMPT)
    folder = Path(shutil.copytree(vllm_models / "other", tmp_path / "corrupt"))
    tensors = load_file(folder / "model.safetensors")
    tensors[TENSOR].view(torch.int32).view(-1)[17] ^= 1  # one bit of one tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CanaryError, match=r"engine-0 refused version 1 of the weights: .*corrupt holds other weights"):
        await pool.load(str(folder), 1, good)
    with pytest.raises(EngineError, match="serves nothing until weights are delivered whole"):
        await pool.generate(GenerateRequest(id="r", prompt_ids=PROMPT, max_tokens=2))
    with pytest.raises(CanaryError, match="engine-0 refused version 1"):  # what was delivered before, once more
        await pool.load(str(vllm_models / "first"), 1, good)
    loaded = await pool.load(str(vllm_models / "other"), 1, good)
    assert (loaded.version, loaded.digest) == (1, good) and loaded.held > 0
    assert 0 < pool.counts()["time/paused_s"] == loaded.paused_s
    assert await pool.logprobs(PROMPT) != before
    with pytest.raises(EngineError, match="version 0 of the weights is older than version 1"):
        await pool.load(str(vllm_models / "first"), 0)
    got = await pool.generate(GenerateRequest(id="r", prompt_ids=PROMPT, max_tokens=4))
    assert set(got.versions) == {1}


async def test_it_says_how_full_it_is_and_that_it_preempts(pool: EnginePool) -> None:
    """Sixteen requests of 150 tokens where 1,000 fit: all are answered, some after they gave their memory back."""
    life = next(iter(pool._placing.serving.values()))
    heard: list[Stats] = []

    async def listen() -> None:
        async with aclosing(life.client.pulse()) as pulses:
            async for stats in pulses:
                heard.append(stats)

    listening = asyncio.ensure_future(listen())
    asked = [GenerateRequest(id=f"r{n}", prompt_ids=[n + 3, *PROMPT], max_tokens=125, seed=n) for n in range(16)]
    got = await asyncio.gather(*(pool.generate(one) for one in asked))
    assert all(len(one.token_ids) == 125 or one.finish_reason == "stop" for one in got)
    while heard[-1].running + heard[-1].waiting or len(heard) < 2:
        await asyncio.sleep(0.1)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    assert heard[-1].preemptions > 0 and heard[-1].kv_use == 0.0
    assert max(each.kv_use for each in heard) > 0.5
    assert any(each.waiting for each in heard) and all(each.running + each.waiting <= 16 for each in heard)


async def test_a_killed_replica_comes_back_with_the_weights_and_the_answer_is_the_same(
    pool: EnginePool, vllm_models: Path
) -> None:
    await pool.load(str(vllm_models / "other"), 2, digest_file(vllm_models / "other" / "model.safetensors"))
    expected = await pool.logprobs(PROMPT)
    one = GenerateRequest(id="r", prompt_ids=PROMPT, max_tokens=100, seed=5)
    undisturbed = await pool.generate(one)
    begun = asyncio.Event()
    told: list[int] = []

    def tell(piece: object) -> None:
        told.extend(piece.token_ids)  # type: ignore[attr-defined]
        begun.set()

    asked = asyncio.ensure_future(pool.generate(one, tell))
    await begun.wait()
    os.kill((await pool.info()).pid, signal.SIGKILL)
    got = await asked
    assert got.token_ids == undisturbed.token_ids == told and set(got.versions) == {2}
    assert pool.counts()["engine/restarts"] == 1
    assert await pool.logprobs(PROMPT) == pytest.approx(expected, abs=1e-6)
