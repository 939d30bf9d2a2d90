"""How well sampling and training overlap: rockroll's own scheduling, with everything else made of waiting.

In: nothing. Out: episodes a second of trained batches, in turns and ahead; what redundancy saves on a heavy tail; what
the scheduler itself costs, and the controller while all wait. Environments wait (one episode in twenty ten times
longer, the same ones in every run), the engine answers at a fixed rate, a training step takes a fixed time. Leaves real
episodes to rollout.py, and a clock without a machine to waits.py.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rockroll.bench import waits
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
    """An environment that waits; the seed, and which of its episodes it is, say how long: runs are compared over the
    same ones, where drawn anew the few slow ones alone move a ratio of seconds by 4 %."""

    begun: Counter[int | None] = Counter()
    """Episodes of this run, by seed."""

    def __init__(self) -> None:
        self._left = TURNS

    async def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        draw = random.Random(f"{seed}/{self.begun[seed]}")
        self.begun[seed] += 1
        self._wait = TURN_S * (SLOWER if draw.randrange(SLOW_ONE_IN) == 0 else 1)
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
    """*_by_waits: the same runs by a clock that stands while anything computes: what the schedule comes to, on any
    machine the same. The others have this machine's processor time in them, which all episodes of a step share."""
    tokenizer = ChatTokenizer(prepare("tiny"))
    ahead, turns, redundant, whole, kept = await _runs(tokenizer)
    by_waits = await asyncio.to_thread(lambda: waits.run(_runs(tokenizer)))
    assert ahead.staleness <= 2, ahead.staleness
    return {
        "figures": {
            "async_episodes_per_s": ahead.episodes / ahead.seconds,
            "async_staleness_max": float(ahead.staleness),
            "redundant_step_s": redundant.seconds / STEPS,
            **_ratios(ahead, turns, redundant, whole, kept),
            **{f"{name}_by_waits": ratio for name, ratio in _ratios(*by_waits).items()},
            "scheduler_us_per_episode_4096_in_flight": _scheduler(),
            "episode_overhead_us": await _overhead(tokenizer),
            "controller_idle_cpu_percent": await _idle(tokenizer),
        },
        "baselines": {
            "sync_episodes_per_s": turns.episodes / turns.seconds,
            "step_s": whole.seconds / STEPS,
        },
    }


async def _runs(tokenizer: ChatTokenizer) -> tuple[Ran, Ran, Ran, Ran, Ran]:
    """Ahead, in turns; 32 groups of 8 out of 36 of 9, 32 of 8 without spares, and 36 of 9 that are all waited for: what
    is not cancelled holds its sandbox as long."""
    return (
        await _train(tokenizer, max_staleness=2),
        await _train(tokenizer, max_staleness=0),
        await _train(
            tokenizer, max_staleness=0, groups=32, step_s=0.0, redundancy=RedundancyConfig(groups=4, episodes=1)
        ),
        await _train(tokenizer, max_staleness=0, groups=32, step_s=0.0),
        await _train(tokenizer, max_staleness=0, groups=36, episodes=9, step_s=0.0),
    )


def _ratios(ahead: Ran, turns: Ran, redundant: Ran, whole: Ran, kept: Ran) -> dict[str, float]:
    return {
        "async_speedup": (ahead.episodes / ahead.seconds) / (turns.episodes / turns.seconds),
        "redundant_speedup": whole.seconds / redundant.seconds,
        "redundant_sandbox_s_saved_ratio": kept.episode_s / redundant.episode_s,
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
    Waiting.begun.clear()
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
        began = asyncio.get_running_loop().time()
        async with rollout.stream(batches=steps) as stream:
            for version in range(steps):
                batch = await stream.take()
                trained += sum(len(group.episodes) for group in batch)
                versions = [v for g in batch for e in g.episodes for s in e.samples for v in s.versions if v >= 0]
                stale = max(stale, version - min(versions))
                await asyncio.sleep(step_s)
                engine.version = version + 1
                stream.stepped(version + 1)
            seconds = asyncio.get_running_loop().time() - began
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


async def _idle(tokenizer: ChatTokenizer, groups: int = 512, seconds: float = 3.0) -> float:
    """Processor time in per cent of one core while 4,096 episodes are under way and none of them moves."""
    Held.all_begun, Held.released = asyncio.Event(), asyncio.Event()
    Held.left = groups * EPISODES
    config = RolloutConfig(groups=groups, episodes=EPISODES, concurrency=Held.left, max_tokens=ANSWER_TOKENS)
    task = TaskConfig(env=f"{__name__}:Held", max_turns=2)
    async with Rollout(config, FixedRate(tokenizer.stop_ids[0], 0), None, task, None, tokenizer) as rollout:
        batch = asyncio.ensure_future(rollout.batch(0))
        await Held.all_begun.wait()
        began = time.process_time()
        await asyncio.sleep(seconds)
        used = time.process_time() - began
        Held.released.set()
        await batch
    return used / seconds * 100


class Held:
    """One turn, whose step waits until all episodes are in theirs, and then until it is let go."""

    left = 0
    all_begun: asyncio.Event
    released: asyncio.Event

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        return "go", {}

    async def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        Held.left -= 1
        if not Held.left:
            self.all_begun.set()
        await self.released.wait()
        return "", 0.0, True, False, {}


class Instant:
    """One turn, at once."""

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        return "go", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", random.random(), True, False, {}
