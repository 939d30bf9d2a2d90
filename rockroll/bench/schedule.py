"""How well sampling and training overlap: rockroll's own scheduling, with everything else made of waiting.

In: nothing. Out: episodes a second of trained batches, in turns and ahead; what redundancy saves on a heavy tail; what
the scheduler itself costs. Environments wait (one episode in twenty ten times longer), the engine answers at a fixed
rate, a training step takes a fixed time. Leaves real episodes to rollout.py.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass
from typing import Any

from rockroll.controller.model_path import prepare
from rockroll.engine.api import EngineInfo, GenerateRequest, Generation, Loaded
from rockroll.errors import EngineError
from rockroll.rollout.admission import Admission
from rockroll.rollout.config import RedundancyConfig, RolloutConfig, TaskConfig
from rockroll.rollout.runner import Rollout
from rockroll.rollout.sample import Event
from rockroll.rollout.tokenizer import ChatTokenizer

TURNS, TURN_S = 2, 0.2
"""An episode's environment waits 0.4 s in all; a slow one's 4 s."""
SLOW_ONE_IN, SLOWER = 20, 10
ANSWER_S, ANSWER_TOKENS = 0.01, 4
STEP_S = 0.5
STEPS, GROUPS, EPISODES = 10, 16, 8


class Waiting:
    """An environment that waits; the seed says how long."""

    def __init__(self) -> None:
        self._left = TURNS

    async def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        # Of its own, not of the seed: episodes of one group differ in how long they take.
        self._wait = TURN_S * (SLOWER if random.randrange(SLOW_ONE_IN) == 0 else 1)
        return "go", {}

    async def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        await asyncio.sleep(self._wait)
        self._left -= 1
        return "go", float(random.random() < 0.5), not self._left, False, {}


class FixedRate:
    """An engine without a model: every answer takes ANSWER_S, however many there are."""

    def __init__(self, stop: int, wait: float = ANSWER_S) -> None:
        self.version = 0
        self._stop, self._wait = stop, wait

    async def generate(self, request: GenerateRequest, *_: Any, **__: Any) -> Generation:
        await asyncio.sleep(self._wait)
        ids = [self._stop + 1] * (ANSWER_TOKENS - 1) + [self._stop]
        return Generation(
            token_ids=ids, logprobs=[-1.0] * len(ids), versions=[self.version] * len(ids), finish_reason="stop"
        )

    async def load(self, path: str, version: int, digest: str = "") -> Loaded:
        raise EngineError("an engine without a model has no weights")

    async def logprobs(self, ids: list[int]) -> list[float]:
        raise EngineError("an engine without a model has no log-probs")

    async def info(self) -> EngineInfo:
        return EngineInfo(
            model="none",
            context_length=4096,
            vocab_size=320,
            version=self.version,
            stop_ids=[self._stop],
            pid=os.getpid(),
        )


@dataclass
class Ran:
    seconds: float
    episodes: int
    episode_s: float
    """Seconds of all episodes together, the cancelled ones included: what sandboxes would have been held for."""
    staleness: int


async def run() -> dict[str, Any]:
    tokenizer = ChatTokenizer(prepare("tiny"))
    turns = await _train(tokenizer, max_staleness=0)
    ahead = await _train(tokenizer, max_staleness=2)
    assert ahead.staleness <= 2, ahead.staleness
    whole = await _train(tokenizer, max_staleness=0, groups=32, steps=STEPS, step_s=0.0)
    redundant = await _train(
        tokenizer,
        max_staleness=0,
        groups=32,
        steps=STEPS,
        step_s=0.0,
        redundancy=RedundancyConfig(groups=4, episodes=1),
    )
    # Without cancelling, every episode of the 36 x 9 is waited for, or holds its sandbox as long.
    kept = await _train(tokenizer, max_staleness=0, groups=36, episodes=9, steps=STEPS, step_s=0.0)
    return {
        "figures": {
            "async_episodes_per_s": ahead.episodes / ahead.seconds,
            "async_speedup": (ahead.episodes / ahead.seconds) / (turns.episodes / turns.seconds),
            "async_staleness_max": float(ahead.staleness),
            "redundant_step_s": redundant.seconds / STEPS,
            "redundant_speedup": whole.seconds / redundant.seconds,
            "redundant_sandbox_s_saved_ratio": kept.episode_s / redundant.episode_s,
            "scheduler_us_per_episode_4096_in_flight": _scheduler(),
            "episode_overhead_us": await _overhead(tokenizer),
        },
        "baselines": {
            "sync_episodes_per_s": turns.episodes / turns.seconds,
            "step_s": whole.seconds / STEPS,
        },
    }


async def _train(
    tokenizer: ChatTokenizer,
    *,
    max_staleness: int,
    groups: int = GROUPS,
    episodes: int = EPISODES,
    steps: int = STEPS,
    step_s: float = STEP_S,
    redundancy: RedundancyConfig | None = None,
) -> Ran:
    """So many steps, each a batch and a wait in place of a training step."""
    random.seed(1)
    redundancy = redundancy or RedundancyConfig()
    at_once = (max_staleness + 1) * (groups + redundancy.groups) * (episodes + redundancy.episodes)
    config = RolloutConfig(
        groups=groups,
        episodes=episodes,
        max_staleness=max_staleness,
        redundancy=redundancy,
        concurrency=at_once,
        max_tokens=ANSWER_TOKENS,
    )
    took: list[float] = []

    def note(event: Event) -> None:
        if event.kind == "finished" and event.episode:
            took.append(event.episode.duration_s)

    engine = FixedRate(tokenizer.stop_ids[0])
    task = TaskConfig(env=f"{__name__}:Waiting", max_turns=TURNS + 1)
    stale, trained = 0, 0
    async with Rollout(config, engine, None, task, None, tokenizer, events=note) as rollout:
        began = time.perf_counter()
        async with rollout.stream(batches=steps) as stream:
            for version in range(steps):
                batch = await stream.take()
                trained += sum(len(group.episodes) for group in batch)
                versions = [v for g in batch for e in g.episodes for s in e.samples for v in s.versions if v >= 0]
                stale = max(stale, version - min(versions))
                await asyncio.sleep(step_s)
                engine.version = version + 1
                stream.stepped(version + 1)
            seconds = time.perf_counter() - began
    return Ran(seconds, trained, sum(took), stale)


def _scheduler(in_flight: int = 4096, batches: int = 64) -> float:
    """Microseconds of processor time that admission costs an episode, with so many of them in flight."""
    bound = in_flight // (GROUPS * EPISODES) - 1
    admission = Admission(GROUPS, bound)
    running = list(admission.admit())
    began, trained = time.process_time(), 0
    for version in range(batches):
        while (taken := admission.take()) is None:
            id = running.pop(0)
            admission.finish(id)
        trained += len(taken.groups) * EPISODES
        admission.stepped(version + 1)
        running += admission.admit()
    return (time.process_time() - began) / trained * 1e6


async def _overhead(tokenizer: ChatTokenizer, groups: int = 64) -> float:
    """Microseconds of processor time of a whole episode of one turn in which nothing waits."""
    config = RolloutConfig(groups=groups, episodes=EPISODES, concurrency=groups * EPISODES, max_tokens=ANSWER_TOKENS)
    task = TaskConfig(env=f"{__name__}:Instant", max_turns=2)
    async with Rollout(config, FixedRate(tokenizer.stop_ids[0], 0), None, task, None, tokenizer) as rollout:
        await rollout.batch(0)
        began = time.process_time()
        await rollout.batch(1)
        return (time.process_time() - began) / (groups * EPISODES) * 1e6


class Instant:
    """One turn, at once."""

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        return "go", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", random.random(), True, False, {}
