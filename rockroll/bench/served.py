"""An agent's model calls through the whole path against vLLM alone, on the same prompts and lengths, in turns.

    HTTP call ─► gateway ─► relay ─► transcript, journal ─► pool ─► engine process ─► vLLM        path_tokens_per_s
    the ids that this path made, all at once ─► vllm.LLM.generate, for as many tokens each        offline_tokens_per_s

In: a model, how many calls at once, how many tokens each. Out: both rates and their ratio, over rounds in which one is
measured right after the other: what else the machine does slows both; and the processor time of both sides, which a
busy machine stretches less. Callers, gateway and rollout side are processes
of their own, as in a run; the sandboxes are loopback sockets (bench/relay.py says what a namespace adds).

    python -m rockroll.bench.served ask|offline …        one of its processes
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from rockroll import home
from rockroll.bench.noting import Noting
from rockroll.bench.relay_load import process
from rockroll.controller.model_path import prepare
from rockroll.controller.replicas import open_pool
from rockroll.engine import vllm_versions
from rockroll.engine.config import EngineConfig
from rockroll.engine.kinds import has_gpu
from rockroll.errors import ProcessDied
from rockroll.model_service.relay import OnDelta, Relay
from rockroll.model_service.wire import ChatReply, ChatRequest
from rockroll.placement import usage
from rockroll.placement.local import Processes
from rockroll.placement.needs import Needs
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.journal import Journal
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.rollout.wishes import Sampling

_WORDS = ("the", "file", "was", "moved", "to", "a", "folder", "that", "holds", "logs", "of", "last", "week", "again")
_CONTEXT, _PROMPT_WORDS, _LINE = 1024, (40, 140), 2**26
_STARTING_S = 900


class Asked(msgspec.Struct):
    """One request as the engine got it, and how many tokens it answered with."""

    ids: list[int]
    tokens: int


def configured(model: str, at_once: int, dtype: str, threads: int) -> EngineConfig:
    """Both sides' engine. On a GPU there are two of them at a time, beside each other."""
    gpu = has_gpu()
    return EngineConfig(
        kind="vllm",
        model=str(prepare(model)),
        context_length=_CONTEXT,
        max_batch=at_once,
        prefill_tokens=8192 if gpu else 512,
        memory="8g" if gpu else "512m",  # in bytes: measured, each would count the other's as its own
        gpu_share=0.3,
        dtype=dtype,  # type: ignore[arg-type]
        threads=threads,
    )


async def run(
    model: str = "tiny",
    *,
    at_once: int = 16,
    calls: int = 4,
    tokens: int = 32,
    rounds: int = 3,
    dtype: str = "float32",
    threads: int = 1,
) -> dict[str, Any]:
    """at_once callers, each `calls` calls of a round one after the other, each answer at most `tokens` tokens."""
    config = await asyncio.to_thread(configured, model, at_once, dtype, threads)
    begun = time.perf_counter()
    async with _offline(config) as (alone, their_cpu_s), _path(config, at_once, tokens) as (ports, noting):
        started_s = time.perf_counter() - begun
        through: list[tuple[int, float]] = []
        offline: list[float] = []
        path_cpu = offline_cpu = 0.0
        for number in range(-1, rounds):  # the first one warms both up
            noting.asked.clear()
            cpu = _cpu_s(their_cpu_s)
            seconds = await _ask(ports, number, 1 if number < 0 else calls, tokens)
            cpu, theirs = _cpu_s(their_cpu_s) - cpu, their_cpu_s()
            asked = [Asked(request.prompt_ids, len(got.token_ids)) for request, got in noting.asked]
            again = await alone(asked)
            if number >= 0:
                path_cpu, offline_cpu = path_cpu + cpu, offline_cpu + their_cpu_s() - theirs
                through.append((sum(one.tokens for one in asked), seconds))
                offline.append(again)
    sampled = sum(count for count, _ in through)
    path, bare = sampled / sum(seconds for _, seconds in through), sampled / sum(offline)
    return {
        "figures": {
            "path_tokens_per_s": path,
            "path_per_offline": path / bare,
            "worst_round_path_per_offline": min(o / s for (_, s), o in zip(through, offline, strict=True)),
            "path_cpu_ms_per_token": 1e3 * path_cpu / sampled,
            "path_per_offline_tokens_per_cpu_s": offline_cpu / path_cpu if path_cpu else 0.0,
            "calls_per_round": float(at_once * calls),
            "tokens": float(sampled),
            "start_s": started_s,
        },
        "baselines": {"offline_tokens_per_s": bare, "offline_cpu_ms_per_token": 1e3 * offline_cpu / sampled},
    }


def _cpu_s(theirs: Callable[[], float]) -> float:
    """Processor seconds of the path: of this process and all that it has started and lives, vLLM alone left out. The
    callers, which are agents, live between two of these only."""
    return usage.of(os.getpid())[0] - theirs()


@asynccontextmanager
async def _path(config: EngineConfig, sandboxes: int, tokens: int) -> AsyncIterator[tuple[list[str], Noting]]:
    """The ports at which the path's sandboxes are called, and what reaches the engine."""
    tokenizer = ChatTokenizer(config.model)
    limits = Sampling(temperature=1.0, top_p=1.0, max_tokens=tokens, max_turns=1, context_length=_CONTEXT)
    async with AsyncExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rockroll-served-")))
        # where runs lie: what a flush costs is their disk's
        kept = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=home.made(home.runs_dir())))
        processes = await stack.enter_async_context(Processes(logs))
        pool = await open_pool(config, Needs(), processes)
        stack.push_async_callback(pool.close)
        await processes.guard(pool.info())
        noting = Noting(pool)
        journal = await stack.enter_async_context(Journal(Path(kept), "write"))
        serial = 0

        async def answer(request: ChatRequest, on_delta: OnDelta | None) -> ChatReply:
            nonlocal serial
            serial += 1
            engine: Any = noting
            dialogue = Dialogue(f"served-{serial}", tokenizer, engine, limits, seed=serial, journal=journal)
            return await dialogue.chat(request, on_delta)

        address = processes.address("relay")
        await stack.enter_async_context(Relay(address, answer, ["m"]))
        _, *ports = (await stack.enter_async_context(process("gateway", address, str(sandboxes)))).split()
        yield ports, noting


async def _ask(ports: Sequence[str], number: int, calls: int, tokens: int) -> float:
    """Seconds from the first call to the last answer."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, "ask", str(number), str(calls), str(tokens), *ports),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await running.communicate()
    if running.returncode:
        raise ProcessDied(f"the benchmark's callers ended with code {running.returncode}; what they said is above")
    return float(said)


async def _calls(number: str, calls: str, tokens: str, *ports: str) -> None:
    import aiohttp

    draw = random.Random(number)
    texts = {
        port: [" ".join(draw.choices(_WORDS, k=draw.randint(*_PROMPT_WORDS))) for _ in range(int(calls))]
        for port in ports
    }
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(port: str) -> None:
            for text in texts[port]:
                body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": int(tokens)}
                async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as reply:
                    if reply.status != 200:
                        sys.exit(f"a call of the benchmark was refused: {await reply.text()}")
                    await reply.read()

        begun = time.perf_counter()
        await asyncio.gather(*(one(port) for port in ports))
        print(time.perf_counter() - begun)


@asynccontextmanager
async def _offline(config: EngineConfig) -> AsyncIterator[Any]:
    """vLLM alone, in a process of its own: a function from what was asked to the seconds it takes, and one that says
    its processor seconds so far."""
    with tempfile.TemporaryDirectory(prefix="rockroll-offline-") as folder:
        file = Path(folder) / "engine.json"
        file.write_bytes(msgspec.json.encode(config))
        running = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, "offline", str(file)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE,
        )
        assert running.stdin is not None and running.stdout is not None

        async def line() -> bytes:
            assert running.stdout is not None
            async with asyncio.timeout(_STARTING_S):
                if not (said := await running.stdout.readline()):
                    raise ProcessDied(f"vLLM alone ended with code {await running.wait()}; what it said is above")
            return said

        async def measure(asked: Sequence[Asked]) -> float:
            assert running.stdin is not None
            running.stdin.write(msgspec.json.encode(asked) + b"\n")
            return float(await line())

        try:
            await line()
            yield measure, lambda: usage.of(running.pid)[0]
        finally:
            running.stdin.close()
            await running.wait()


def _alone(file: str) -> None:
    """Lines of what is to be sampled come in; the seconds that each takes go out, "ready" before the first."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints what it likes
    config = msgspec.json.decode(Path(file).read_bytes(), type=EngineConfig)
    llm, sampling = vllm_versions.offline(config, _CONTEXT)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        asked = msgspec.json.decode(line, type=list[Asked])
        prompts = [{"prompt_token_ids": one.ids} for one in asked]
        how = [sampling(one.tokens, seed) for seed, one in enumerate(asked)]
        begun = time.perf_counter()
        done = llm.generate(prompts, how, use_tqdm=False)
        took = time.perf_counter() - begun
        if [len(each.outputs[0].token_ids) for each in done] != [one.tokens for one in asked]:
            sys.exit("vLLM alone sampled other lengths than it was asked for: the rates cannot be compared")
        print(took, file=out, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        asyncio.run(_calls(*sys.argv[2:]))
    else:
        _alone(sys.argv[2])
