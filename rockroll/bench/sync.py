"""Weights into a busy engine, again and again: how long each delivery takes, and whether memory stays flat.

In: an engine's kind and a model. Out: seconds of a load and of the pause in it, tokens sampled meanwhile, memory at the
start and at the end; and what it takes to write and load the weights through memory and, as baseline, through a disk.
Any delivery that is not proved, any token that carries a version it cannot have, any log-prob that is not that of the
weights just delivered ends the run with an error. Leaves training to rockroll/train: the weights here are the model's
own and a copy that is a little off.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from rockroll import home
from rockroll.controller.model_path import prepare
from rockroll.digest import Digest
from rockroll.engine import weights
from rockroll.engine.api import GenerateRequest
from rockroll.engine.client import EngineClient
from rockroll.engine.config import EngineConfig
from rockroll.errors import CanaryError, ProcessDied
from rockroll.placement import handover, usage
from rockroll.train import folder as whole
from rockroll.train.extent import parameters_of
from rockroll.train.tensor_file import write_tensors

AT_ONCE, NEW, SETTLED = 16, 64, 0.1
"""Requests under way; tokens of each; the part of the deliveries after which memory should grow no more."""
WAYS = 6
"""Deliveries through memory, and as many through a disk, into an idle engine."""


async def run(kind: str, model: str, syncs: int, dtype: str = "float32") -> dict[str, Any]:
    """`syncs` deliveries, alternately of two sets of weights, while AT_ONCE requests are always under way."""
    folder = await asyncio.to_thread(prepare, model)
    with (
        tempfile.TemporaryDirectory(prefix="rockroll-sync-") as place,
        tempfile.TemporaryDirectory(prefix="bench-", dir=home.made(home.runs_dir())) as disk,  # where runs lie
        handover.folder(Path(disk), parameters_of(folder) * 4) as memory,
    ):
        other = await asyncio.to_thread(a_little_off, folder, Path(place) / "other")
        config = EngineConfig(
            kind=kind,  # type: ignore[arg-type]
            model=str(folder),
            address=f"ipc://{place}/engine",
            dtype=dtype,  # type: ignore[arg-type]
            context_length=512,
            max_batch=AT_ONCE,
            memory="256m",
        )
        async with running(config, Path(place)) as (engine, pid):
            figures = await _soak(engine, pid, [folder, other], syncs)
            if memory != Path(disk):
                figures |= await _way(engine, pid, folder, memory, syncs, "memory")
            baselines = await _way(engine, pid, folder, Path(disk) / "weights", syncs + WAYS, "disk")
            return {"figures": figures, "baselines": baselines}


async def _way(engine: EngineClient, pid: int, source: Path, target: Path, version: int, name: str) -> dict[str, float]:
    """Seconds to write the weights at `target` as a trainer does, and of the engine's pause to take them; of the clock
    and of the processors, since only the second is the same on a busy machine."""
    tensors = await asyncio.to_thread(weights.read, source)
    wrote: list[float] = []
    paused: list[float] = []
    write_cpu: list[float] = []
    load_cpu: list[float] = []
    for number in range(1, WAYS + 1):
        begun, cpu = time.perf_counter(), time.process_time()
        digest = await asyncio.to_thread(_write, source, tensors, target)
        wrote.append(time.perf_counter() - begun)
        write_cpu.append(time.process_time() - cpu)
        cpu, _ = usage.of(pid)
        loaded = await engine.load(str(target), version + number, digest)
        paused.append(loaded.paused_s)
        load_cpu.append(usage.of(pid)[0] - cpu)
    return {
        f"{name}_write_p50_s": statistics.median(wrote),
        f"{name}_write_cpu_p50_s": statistics.median(write_cpu),
        f"{name}_paused_p50_s": statistics.median(paused),
        f"{name}_load_cpu_p50_s": statistics.median(load_cpu),
    }


def _write(source: Path, tensors: dict[str, Tensor], target: Path) -> str:
    seen = Digest()

    def each() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            seen.add(name, tensor)
            yield name, tensor

    partial = whole.aside(target)
    copy_plain(source, partial)
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors(partial / "model.safetensors", layout, each())
    whole.put(partial, target)
    return seen.hex()


async def _soak(engine: EngineClient, pid: int, folders: list[Path], syncs: int) -> dict[str, float]:
    vocab = (await engine.info()).vocab_size
    draw = random.Random(0)
    prompt = [draw.randrange(vocab) for _ in range(64)]
    sampled, wrong, stopping = 0, "", False

    async def ask(number: int) -> None:
        nonlocal sampled, wrong
        turn = 0
        while not stopping:
            turn += 1
            ids = [draw.randrange(vocab) for _ in range(16)]
            before = (await engine.info()).version
            got = await engine.generate(
                GenerateRequest(id=f"{number}-{turn}", prompt_ids=ids, max_tokens=NEW, seed=turn)
            )
            sampled += len(got.token_ids)
            if got.versions != sorted(got.versions) or not before <= got.versions[0]:
                wrong = f"versions {got.versions[0]} … {got.versions[-1]} of a request begun at {before}"

    expected: dict[int, list[float]] = {}
    digests: dict[int, str] = {}
    took: list[float] = []
    paused: list[float] = []
    settled: dict[str, float] = {}
    started = time.perf_counter()
    asking = [asyncio.create_task(ask(number)) for number in range(AT_ONCE)]
    try:
        for version in range(1, syncs + 1):
            which = version % 2
            begun = time.perf_counter()
            loaded = await engine.load(str(folders[which]), version)
            took.append(time.perf_counter() - begun)
            paused.append(loaded.paused_s)
            if digests.setdefault(which, loaded.digest) != loaded.digest:
                raise CanaryError(f"delivery {version}: digest {loaded.digest}, {digests[which]} the last time")
            scores = await engine.logprobs(prompt)
            apart = max(abs(a - b) for a, b in zip(expected.setdefault(which, scores), scores, strict=True))
            if apart > 0.05:
                raise CanaryError(f"delivery {version}: log-probs are {apart:.3f} from the last ones of these weights")
            if wrong:
                raise CanaryError(f"after delivery {version}: {wrong}")
            if version == max(1, int(syncs * SETTLED)):
                settled = _memory(pid)
    finally:
        stopping = True
        await asyncio.gather(*asking, return_exceptions=True)
    if len(digests) == 2 and digests[0] == digests[1]:
        raise CanaryError("two sets of weights have one digest: nothing was delivered")
    seconds = time.perf_counter() - started
    figures = {
        "syncs": float(syncs),
        "load_p50_s": statistics.median(took),
        "load_max_s": max(took),
        "paused_p50_s": statistics.median(paused),
        "paused_max_s": max(paused),
        "tokens_per_s": sampled / seconds,
        "loading_share": sum(took) / seconds,
    }
    for name, value in _memory(pid).items():
        figures |= {f"{name}_mb": value, f"{name}_growth_mb": value - settled.get(name, value)}
    return figures


@asynccontextmanager
async def running(config: EngineConfig, place: Path) -> AsyncIterator[tuple[EngineClient, int]]:
    """An engine in a process of its own, which is ready, and its pid; ended at the end."""
    file = place / "engine.json"
    file.write_bytes(msgspec.json.encode(config))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rockroll.engine.server", "--config", str(file)
    )
    client = await EngineClient.connect(config.address)
    died = asyncio.create_task(process.wait())
    died.add_done_callback(lambda _: client.fail(ProcessDied("the engine process died; what it said is above")))
    try:
        await client.info()
        yield client, process.pid
    finally:
        await client.close()
        if process.returncode is None:
            process.terminate()
        await died


def a_little_off(folder: Path, target: Path) -> Path:
    """A copy of the model whose weights are two per cent larger."""
    from safetensors.torch import save_file

    target.mkdir()
    copy_plain(folder, target)
    changed = {name: tensor * 1.02 for name, tensor in weights.read(folder).items()}
    save_file(changed, target / "model.safetensors", {"format": "pt"})
    return target


def copy_plain(folder: Path, target: Path) -> None:
    """A model's files but for its weights."""
    for file in folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)


def _memory(pid: int) -> dict[str, float]:
    """MB that the engine's processes hold, and on a GPU what is in use there."""
    import psutil

    process = psutil.Process(pid)
    held = {"rss": sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 1e6}
    if os.path.exists("/dev/nvidia0"):  # noqa: PTH110
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode == 0:
            held["gpu"] = sum(float(line) for line in said.stdout.split()) * 1.048576
    return held
