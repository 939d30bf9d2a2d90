"""Rollouts: whole episodes a second, the quick start's with nothing left out, and how they are scheduled.

In: how many. Out: figures of real sandboxes, the agent program, its HTTP calls, the relay, the engine, grading and
recycling; beside them those of schedule.py, where everything but the scheduling is waiting. Leaves training out:
rollouts are what limits a run on one machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

from rockroll.bench import schedule
from rockroll.controller.parts import Parts, parts
from rockroll.controller.run_dir import RunDir
from rockroll.recipe.load import load
from rockroll.sandbox.client import Sandbox

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
WARM_UP = 64


async def run(episodes: int = 256) -> dict[str, Any]:
    """All figures of rollouts. episodes: of the real part; 0 leaves it out."""
    scheduled = await schedule.run()
    if not episodes:
        return scheduled
    found = await real(episodes)
    return {part: {**found[part], **scheduled[part]} for part in ("figures", "baselines")}


async def real(episodes: int) -> dict[str, Any]:
    """episodes_per_s over `episodes` of the quick start's training tasks, after 64 to warm up.

    Baseline: an agent program that only starts and ends, in a fresh sandbox each (create, start, run, delete).
    """
    config = load(RECIPE)
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, episodes=0))
    group = config.rollout.episodes
    with tempfile.TemporaryDirectory(prefix="rockroll-bench-") as folder, RunDir(Path(folder), resume=False) as run_dir:
        async with parts(config, run_dir, lambda _: None, train=False) as made:
            return await made.processes.guard(_measure(made, max(1, episodes // group), group))


async def _measure(made: Parts, groups: int, group: int) -> dict[str, Any]:
    assert made.rollout is not None
    await made.rollout.batch(1, WARM_UP // group, group)
    begun = time.perf_counter()
    async with _processor_time() as cpu:
        batch = await made.rollout.batch(2, groups, group)
    seconds = time.perf_counter() - begun
    done = [episode for g in batch for episode in g.episodes]
    return {
        "figures": {
            "episodes_per_s": len(done) / seconds,
            "turns_per_s": sum(e.turns for e in done) / seconds,
            "tokens_per_s": sum(e.sampled for e in done) / seconds,
            "episode_p50_s": statistics.median(e.duration_s for e in done),
            "broken_episodes": sum(n for g in batch for n in g.discarded.values()),
            "machine_cpu_fraction": cpu[0],
        },
        "baselines": {"fresh_sandbox_episodes_per_s": await _fresh(16)},
    }


async def _fresh(n: int, at_once: int = 4) -> float:
    slots = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with slots, Sandbox() as sandbox:
            await sandbox.execute(["python3", "-I", "-S", "-c", "pass"])

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(n)))
    return n / (time.perf_counter() - begun)


@contextlib.asynccontextmanager
async def _processor_time() -> AsyncIterator[list[float]]:
    """Fraction of all cores that was busy meanwhile, by whomever."""
    before, found = psutil.cpu_times(), [0.0]
    yield found
    after = psutil.cpu_times()
    total, idle = sum(after) - sum(before), after.idle - before.idle
    found[0] = 1 - idle / total if total else 0.0
