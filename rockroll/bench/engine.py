"""Tokens a second on one thread of this machine, for prompts and turns like the quick start's.

In: a model folder. Out: figures of the transformers engine; as baseline, transformers' own continuous batching on the
same prompts in the same run. Leaves processes, sandboxes and agents out: see rollout.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from rockroll.controller.model_path import prepare
from rockroll.engine.api import Engine, GenerateRequest
from rockroll.engine.config import EngineConfig
from rockroll.engine.transformers_engine import TransformersEngine

AT_ONCE, NEW, TURNS, GROUP = 32, 24, 3, 8


async def run(model: str = "tiny") -> dict[str, Any]:
    """one_shot: 32 unlike prompts of 60–250 tokens at once, 24 new tokens each, prompts included in the time.
    turns: 64 episodes in groups of 8 with one prompt, 3 turns of 8–24 tokens; each turn 25 more prompt tokens.
    decode_N: N at once, short prompts. prefill: prompts only."""
    folder = str(prepare(model))
    engine = await TransformersEngine.open(EngineConfig(model=folder))
    try:
        figures = await _measure(engine)
    finally:
        await engine.close()
    return {"figures": figures, "baselines": await asyncio.to_thread(_continuous_batching, folder)}


def _prompts(vocab: int, number: int, shortest: int = 60, longest: int = 250) -> list[list[int]]:
    draw = random.Random(number)
    return [[draw.randrange(vocab) for _ in range(draw.randrange(shortest, longest))] for _ in range(number)]


async def _measure(engine: Engine) -> dict[str, float]:
    vocab = (await engine.info()).vocab_size
    figures: dict[str, float] = {}

    async def ask(prompt: list[int], tokens: int, seed: int) -> list[int]:
        request = GenerateRequest(id="bench", prompt_ids=prompt, max_tokens=tokens, seed=seed)
        return (await engine.generate(request)).token_ids

    async def timed(prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        """(wall, CPU) seconds to answer all at once."""
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(ask(prompt, tokens, seed) for seed, prompt in enumerate(prompts)))
        return time.perf_counter() - wall, time.process_time() - cpu

    await timed(_prompts(vocab, 8), NEW)
    prompts = _prompts(vocab, AT_ONCE)
    wall, cpu = await timed(prompts, NEW)
    figures["one_shot_tokens_per_s"] = AT_ONCE * NEW / wall
    figures["one_shot_tokens_per_cpu_s"] = AT_ONCE * NEW / cpu
    prompts = _prompts(vocab, AT_ONCE + 1)
    wall, _ = await timed(prompts, 1)
    figures["prefill_tokens_per_s"] = sum(map(len, prompts)) / wall
    for at_once in (1, 8, AT_ONCE):
        wall, _ = await timed(_prompts(vocab, at_once, 20, 80), 64)
        figures[f"decode_{at_once}_tokens_per_s"] = at_once * 64 / wall

    sampled = 0

    async def episode(index: int) -> None:
        nonlocal sampled
        draw = random.Random(index)
        ids = list(openings[index // GROUP])
        for turn in range(TURNS):
            ids += await ask(ids, draw.randrange(8, NEW + 1), index * TURNS + turn)
            ids += [draw.randrange(vocab) for _ in range(25)]
        sampled += len(ids) - len(openings[index // GROUP]) - TURNS * 25

    openings = _prompts(vocab, 64 // GROUP, 80, 140)
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(episode(index) for index in range(64)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    figures |= {"turns_tokens_per_s": sampled / wall, "turns_tokens_per_cpu_s": sampled / cpu}
    figures["turns_episodes_per_cpu_s"] = 64 / cpu
    return figures


def _continuous_batching(folder: str) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    wanted = GenerationConfig(do_sample=True, max_new_tokens=NEW, eos_token_id=-1, pad_token_id=0, top_k=0)
    # the best of the settings tried: docs/decisions/002-engine.md
    how = ContinuousBatchingConfig(return_logprobs=True, num_blocks=512, page_size=32, max_batch_tokens=128)
    manager = model.init_continuous_batching(generation_config=wanted, continuous_batching_config=how)
    manager.start()
    try:
        for prompts in (_prompts(model.config.vocab_size, 8), _prompts(model.config.vocab_size, AT_ONCE)):
            wall, cpu = time.perf_counter(), time.process_time()
            for prompt in prompts:
                manager.add_request(prompt, max_new_tokens=NEW)
            for _ in prompts:
                manager.get_result(timeout=300)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        manager.stop(block=True)
    return {
        "continuous_batching_one_shot_tokens_per_s": AT_ONCE * NEW / wall,
        "continuous_batching_one_shot_tokens_per_cpu_s": AT_ONCE * NEW / cpu,
    }
