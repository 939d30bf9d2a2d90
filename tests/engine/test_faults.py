"""Folders without a model, weights that are damaged, processes that die: one clear sentence, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from rockroll.digest import digest_file
from rockroll.engine.api import GenerateRequest
from rockroll.engine.client import EngineClient
from rockroll.engine.config import EngineConfig
from rockroll.engine.transformers_engine import TransformersEngine
from rockroll.errors import EngineError, PeerLost

from .conftest import SHAPE, llama


async def refused(folder: Path, **changes: object) -> str:
    with pytest.raises(EngineError) as caught:
        await TransformersEngine.open(EngineConfig(model=str(folder), **changes))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_folder_without_a_model_is_named(tmp_path: Path, copy: Path) -> None:
    assert "no such folder" in await refused(tmp_path / "nothing")
    assert "no config.json" in await refused(tmp_path)
    (copy / "tokenizer.json").unlink()
    assert "no tokenizer" in await refused(copy)
    (copy / "tokenizer.json").write_text("{}")
    (copy / "model.safetensors").unlink()
    assert "no weights" in await refused(copy)
    (copy / "config.json").write_text("{")
    assert "no weights" in await refused(copy)


async def test_damaged_weights_are_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert str(copy) in await refused(copy)
    file.write_bytes(b"not a file of tensors")
    assert str(copy) in await refused(copy)
    file.write_bytes(whole)
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in await refused(copy)


async def test_a_context_beyond_the_models_is_refused(copy: Path) -> None:
    assert "at most 160" in await refused(copy, context_length=161)


async def test_a_model_without_plain_attention_is_refused_not_garbled(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=16)).save_pretrained(tmp_path / "g")  # type: ignore[arg-type]
    (tmp_path / "g" / "tokenizer.json").write_text("{}")
    assert "use a model with plain attention" in await refused(tmp_path / "g")


async def test_a_delivery_is_proved_by_what_the_file_says(models: Path) -> None:
    engine = await TransformersEngine.open(EngineConfig(model=str(models / "first")))
    loaded = await engine.load(str(models / "other"), 3)
    file = models / "other" / "model.safetensors"
    assert (loaded.tensors, loaded.digest) == (len(load_file(file)), digest_file(file))
    await engine.close()


async def test_a_half_written_or_foreign_delivery_leaves_the_old_weights(
    copy: Path, models: Path, tmp_path: Path
) -> None:
    engine = await TransformersEngine.open(EngineConfig(model=str(models / "first")))
    before = await engine.logprobs([5, 6, 7, 8])
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(EngineError, match="cannot be read"):
        await engine.load(str(copy), 1)
    with pytest.raises(EngineError, match="another model"):
        await engine.load(str(llama(tmp_path / "wide", intermediate_size=192)), 1)
    with pytest.raises(EngineError, match="another model"):
        await engine.load(str(llama(tmp_path / "deep", num_hidden_layers=3)), 1)
    assert await engine.logprobs([5, 6, 7, 8]) == before
    assert (await engine.info()).version == 0
    await engine.close()


async def test_sharded_weights_load(copy: Path, models: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, copy / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_bytes(msgspec.json.encode(index))
    engine = await TransformersEngine.open(EngineConfig(model=str(copy)))
    loaded = await engine.load(str(copy), 1)
    assert loaded.digest == digest_file(models / "first" / "model.safetensors")
    await engine.close()


async def test_bfloat16_serves_a_float32_delivery(models: Path) -> None:
    engine = await TransformersEngine.open(EngineConfig(model=str(models / "first"), dtype="bfloat16"))
    loaded = await engine.load(str(models / "other"), 1)
    assert loaded.digest == digest_file(models / "other" / "model.safetensors")
    await engine.close()


async def test_closing_ends_requests_with_what_they_have(models: Path) -> None:
    engine = await TransformersEngine.open(EngineConfig(model=str(models / "first")))
    request = GenerateRequest(id="r", prompt_ids=[5, 6], max_tokens=150)
    running = asyncio.ensure_future(engine.generate(request))
    await engine.generate(GenerateRequest(id="s", prompt_ids=[5, 6], max_tokens=3))
    await engine.close()
    got = await running
    assert got.finish_reason == "abort" and len(got.token_ids) == len(got.logprobs) < 150
    with pytest.raises(EngineError, match="closed"):
        await engine.generate(request)


async def test_a_step_that_fails_fails_its_requests_and_no_others(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await TransformersEngine.open(EngineConfig(model=str(models / "first")))
    request = GenerateRequest(id="r", prompt_ids=[5] * 30, max_tokens=4, temperature=0.0)
    before = await engine.generate(request)
    layer = type(engine._model.model.layers[1].mlp)
    with monkeypatch.context() as broken:
        broken.setattr(layer, "forward", lambda self, x: torch.ones(2, 2) @ torch.ones(3, 3))
        with pytest.raises(EngineError, match="decoding step failed"):
            await engine.generate(request)
    assert (await engine.generate(request)).token_ids == before.token_ids
    await engine.close()


async def server(config: EngineConfig, folder: Path) -> asyncio.subprocess.Process:
    (folder / "engine.json").write_bytes(msgspec.json.encode(config))
    arguments = ("-m", "rockroll.engine.server", "--config", str(folder / "engine.json"))
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stderr=asyncio.subprocess.PIPE)


async def test_a_server_without_a_model_says_one_line_and_ends(tmp_path: Path) -> None:
    process = await server(EngineConfig(model=str(tmp_path / "no"), address=f"ipc://{tmp_path}/engine"), tmp_path)
    _, said = await process.communicate()
    assert process.returncode == 1
    assert said.decode().splitlines() == [
        f"there is no model at {tmp_path / 'no'}: no such folder; scripts/setup makes the tiny one"
    ]


async def test_a_server_told_to_stop_while_loading_stops_at_once(models: Path, tmp_path: Path) -> None:
    process = await server(EngineConfig(model=str(models / "first"), address=f"ipc://{tmp_path}/engine"), tmp_path)
    await asyncio.sleep(0.5)  # somewhere in the imports; any moment will do
    process.terminate()
    async with asyncio.timeout(3):
        await process.wait()
    assert not (tmp_path / "engine").exists()


async def test_a_server_dies_with_its_parent_and_removes_its_socket(models: Path, tmp_path: Path) -> None:
    config = EngineConfig(model=str(models / "first"), address=f"ipc://{tmp_path}/engine")
    (tmp_path / "engine.json").write_bytes(msgspec.json.encode(config))
    parent = await asyncio.create_subprocess_exec(
        "sh", "-c", f"{sys.executable} -m rockroll.engine.server --config {tmp_path}/engine.json & wait"
    )
    client = await EngineClient.connect(config.address)
    pidfd = os.pidfd_open((await client.info()).pid)
    request = GenerateRequest(id="r", prompt_ids=[5], max_tokens=159)
    working = [asyncio.ensure_future(client.generate(request)) for _ in range(64)]
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, gone.set)
    parent.send_signal(signal.SIGKILL)
    async with asyncio.timeout(5):
        await gone.wait()
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)
    assert not (tmp_path / "engine").exists()
    outcomes = await asyncio.gather(*working, return_exceptions=True)
    assert all(isinstance(outcome, PeerLost) or not isinstance(outcome, Exception) for outcome in outcomes)
    await client.close()
    await parent.wait()
