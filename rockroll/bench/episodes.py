"""How much of the engine's own token rate a recipe's episodes reach.

    group, environment or agent ─► transcript, journal ─► pool ─► engine process       episodes_tokens_per_s
    the same requests, each conversation's one after the other ─► pool ─► engine process  engine_tokens_per_s

In: a recipe. Out: both rates and their ratio, over rounds in which one is measured right after the other: what else the
machine does slows both. What the second side lacks is all that rockroll does around the engine: requests have their
seeds, so it draws the same tokens. Before each side the engine takes the same weights anew, and so knows no prompt.
Leaves training out.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rockroll.bench.noting import Noting
from rockroll.controller.config import RunConfig
from rockroll.controller.model_path import prepare
from rockroll.controller.parts import Parts, parts
from rockroll.controller.run_dir import RunDir
from rockroll.engine.api import Engine, GenerateRequest, Generation
from rockroll.errors import UsageError


async def run(config: RunConfig, rounds: int = 5) -> dict[str, Any]:
    """A round is one batch of the recipe. UsageError for a recipe that samples no episodes."""
    if not config.samples or config.replay or config.data is not None:
        raise UsageError("bench episodes measures episodes that a model plays; this recipe learns from what is there")
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, episodes=0))
    with tempfile.TemporaryDirectory(prefix="rockroll-bench-") as folder, RunDir(Path(folder), resume=False) as run_dir:
        asked: list[tuple[GenerateRequest, Generation]] = []

        def seen(engine: Engine) -> Engine:
            noting = Noting(engine)
            noting.asked = asked
            return cast(Engine, noting)

        async with parts(config, run_dir, lambda _: None, train=False, seen=seen) as made:
            return await made.processes.guard(_measure(made, asked, config, rounds))


async def _measure(
    made: Parts, asked: list[tuple[GenerateRequest, Generation]], config: RunConfig, rounds: int
) -> dict[str, Any]:
    assert made.rollout is not None and made.engine is not None
    weights = str(await asyncio.to_thread(prepare, config.model))
    through: list[tuple[int, float]] = []
    alone: list[tuple[int, float]] = []
    conversations = turns = 0
    for number in range(-1, rounds):  # the first one warms both up
        await made.engine.load(weights, 2 * number + 3)
        asked.clear()
        begun = time.perf_counter()
        await made.rollout.batch(number + 1)
        seconds = time.perf_counter() - begun
        each = chains(asked)
        await made.engine.load(weights, 2 * number + 4)
        begun = time.perf_counter()
        again = await replay(made.engine, each, config.rollout.concurrency)
        if number >= 0:
            alone.append((again, time.perf_counter() - begun))
            through.append((sum(len(got.token_ids) for _, got in asked), seconds))
            conversations, turns = conversations + len(each), turns + len(asked)
    path, bare = _rate(through), _rate(alone)
    return {
        "figures": {
            "episodes_tokens_per_s": path,
            "episodes_per_engine": path / bare,
            "worst_round_episodes_per_engine": min(
                _rate([one]) / _rate([other]) for one, other in zip(through, alone, strict=True)
            ),
            "turns_per_conversation": turns / conversations,
            "tokens_per_turn": sum(tokens for tokens, _ in through) / turns,
        },
        "baselines": {"engine_tokens_per_s": bare},
    }


def _rate(each: Sequence[tuple[int, float]]) -> float:
    """Tokens a second, of (tokens, seconds)."""
    return sum(tokens for tokens, _ in each) / sum(seconds for _, seconds in each)


def chains(asked: Sequence[tuple[GenerateRequest, Generation]]) -> list[list[GenerateRequest]]:
    """The requests of each conversation, in order; conversations in the order of their first answers."""
    found: dict[str, list[GenerateRequest]] = {}
    for request, _ in asked:
        found.setdefault(request.id.rpartition(".")[0], []).append(request)
    return list(found.values())


async def replay(engine: Engine, conversations: Sequence[Sequence[GenerateRequest]], at_once: int) -> int:
    """Asks the engine alone; returns how many tokens it sampled."""
    places = asyncio.Semaphore(at_once)

    async def one(requests: Sequence[GenerateRequest]) -> int:
        async with places:
            return sum([len((await engine.generate(request)).token_ids) for request in requests])

    return sum(await asyncio.gather(*map(one, conversations)))
