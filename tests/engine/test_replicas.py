"""Replicas as processes with models: a kill is noticed by nobody who asks, a delivery that went wrong at once."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from rockroll.controller.replicas import open_pool
from rockroll.digest import digest_file
from rockroll.engine.api import GenerateRequest
from rockroll.engine.config import EngineConfig
from rockroll.engine.conformance import PROMISES, Promise, Subject
from rockroll.engine.pool import EnginePool
from rockroll.errors import CanaryError, EngineError
from rockroll.placement.local import Processes
from rockroll.placement.needs import Needs

PROMPT = [5, 9, 33, 61, 7, 7, 80, 12, 44, 3, 91, 18, 26, 70, 55, 4, 39, 62, 10, 81, 23, 47]


@asynccontextmanager
async def started(models: Path, folder: Path, replicas: int = 2) -> AsyncIterator[EnginePool]:
    config = EngineConfig(model=str(models / "first"), replicas=replicas, max_batch=16)
    logs = folder / "logs"
    logs.mkdir(parents=True)
    async with Processes(logs) as processes:
        pool = await open_pool(config, Needs(), processes)
        try:
            await processes.guard(pool.info())
            yield pool
        finally:
            await pool.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pool(models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EnginePool]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ROCKROLL_HOME", str(home))
        async with started(models, tmp_path_factory.mktemp("run")) as made:
            yield made


def requests(count: int, tokens: int = 60) -> list[GenerateRequest]:
    return [GenerateRequest(id=f"r{n}", prompt_ids=[*PROMPT, n + 3], max_tokens=tokens, seed=n) for n in range(count)]


async def pids(pool: EnginePool) -> dict[str, int]:
    return {life.name: (await life.client.info()).pid for life in pool._placing.serving.values()}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_delivery_that_went_wrong_is_caught_at_once(pool: EnginePool, models: Path, tmp_path: Path) -> None:
    good = digest_file(models / "other" / "model.safetensors")
    before = await pool.logprobs_of_each(PROMPT)
    folder = Path(shutil.copytree(models / "other", tmp_path / "corrupt"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name].view(torch.int32).view(-1)[17] ^= 1  # one bit of one tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CanaryError, match=r"engine-\d refused version 1 of the weights: .*corrupt holds other weights"):
        await pool.load(str(folder), 1, good)
    with pytest.raises(CanaryError, match=r"engine-\d refused version 1"):  # what was delivered before, once more
        await pool.load(str(models / "first"), 1, good)
    assert await pool.logprobs_of_each(PROMPT) == before, "a refused delivery changes nothing"
    loaded = await pool.load(str(models / "other"), 1, good)
    assert (loaded.version, loaded.digest) == (1, good)
    with pytest.raises(EngineError, match="version 0 of the weights is older than version 1"):
        await pool.load(str(models / "first"), 0)
    after = await pool.logprobs_of_each(PROMPT)
    assert after["engine-0"] == after["engine-1"] != before["engine-0"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_killed_replica_costs_no_answer_and_comes_back_with_the_weights(pool: EnginePool, models: Path) -> None:
    await pool.load(str(models / "other"), 2, digest_file(models / "other" / "model.safetensors"))
    undisturbed = await asyncio.gather(*(pool.generate(one) for one in requests(12)))
    expected = await pool.logprobs_of_each(PROMPT)
    was = await pids(pool)
    restarts = pool.counts()["engine/restarts"]
    told: dict[str, list[int]] = {one.id: [] for one in requests(12)}
    asked = [
        asyncio.ensure_future(pool.generate(one, lambda piece, id=one.id: told[id].extend(piece.token_ids)))
        for one in requests(12)
    ]
    async with asyncio.timeout(60):
        while not any(told.values()):  # both have some under way
            await asyncio.sleep(0.005)
        os.kill(was["engine-1"], signal.SIGKILL)
        got = await asyncio.gather(*asked)
        assert [one.token_ids for one in got] == [one.token_ids for one in undisturbed]
        assert list(told.values()) == [one.token_ids for one in got], "each token was told once"
        assert pool.counts()["engine/reissued"] > 0
        while pool.counts()["engine/replicas"] < 2:
            await asyncio.sleep(0.05)
    now = await pids(pool)
    assert now["engine-0"] == was["engine-0"] and now["engine-1"] != was["engine-1"]
    again = await pool.logprobs_of_each(PROMPT)
    assert again["engine-1"] == pytest.approx(expected["engine-1"], abs=1e-6)
    assert (await pool.info()).version == 2 and pool.counts()["engine/restarts"] == restarts + 1
    many = await asyncio.gather(*(pool.generate(one) for one in requests(8, 4)))
    assert all(set(one.versions) == {2} for one in many)


@pytest.mark.slow
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_pool_keeps_an_engines_promises(promise: Promise, pool: EnginePool, models: Path) -> None:
    pool._weights = None  # the promises deliver versions in any order
    await promise(
        Subject(engine=pool, prompt=PROMPT, weights=str(models / "first"), other_weights=str(models / "other"))
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_run_of_kills_under_load_loses_nothing(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each replica is killed twice, in the middle of a delivery, while 24 callers ask one request after the other."""
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path / "home"))
    digests = {name: digest_file(models / name / "model.safetensors") for name in ("first", "other")}
    async with started(models, tmp_path / "run") as pool:
        done, ending = 0, False

        async def ask(one: GenerateRequest) -> None:
            nonlocal done
            while not ending:
                got = await pool.generate(one)
                assert len(got.token_ids) == 60 or got.finish_reason == "stop"
                assert got.versions == sorted(got.versions)
                done += 1

        asking = [asyncio.ensure_future(ask(one)) for one in requests(24)]
        async with asyncio.timeout(380):
            for version, name in enumerate(["engine-0", "engine-1"] * 2, start=1):
                while pool.counts()["engine/replicas"] < 2:
                    await asyncio.sleep(0.1)
                enough = done + 48
                while done < enough:
                    await asyncio.sleep(0.05)
                pid = (await pids(pool))[name]
                folder = "other" if version % 2 else "first"
                delivering = asyncio.ensure_future(pool.load(str(models / folder), version, digests[folder]))
                os.kill(pid, signal.SIGKILL)
                assert (await delivering).version == version
            while pool.counts()["engine/replicas"] < 2:
                await asyncio.sleep(0.1)
            ending = True
            await asyncio.gather(*asking)
        counts = pool.counts()
        assert counts["engine/restarts"] == 4 and counts["engine/reissued"] > 0
        assert {(await life.client.info()).version for life in pool._placing.serving.values()} == {4}
