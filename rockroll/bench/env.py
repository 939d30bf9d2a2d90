"""Steps a second of the built-in environments, in this process and through worker processes.

In: nothing. Out: for each environment, the resets of its episodes counted in: steps a second of this process's
processor; steps a second, on the clock, through `make_vec(where="process")`; and what one call through a worker takes
alone. Leaves episodes with a model to rollout.py.

What bounds a call through a worker is the floor: a message to another process and back, with nothing done there.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import time
from itertools import cycle, islice
from typing import Any

from rockroll.env.registry import make
from rockroll.env.vector import make_async, make_vec

ENVS: dict[str, dict[str, Any]] = {
    "rockroll:frozen_lake": {},
    "rockroll:sokoban": {"level": "easy"},
    "rockroll:arithmetic": {},
    "rockroll:math": {},
    "rockroll:shell_quiz": {},
}
"""Those that are stepped; the others are worked on in sandboxes (`rockroll bench rollout`)."""
AT_ONCE = 256
"""Environments of one vectorized call."""
CALLS = 200


async def run(seconds: float = 1.0) -> dict[str, Any]:
    """seconds: of each measurement."""
    return await asyncio.to_thread(measure, seconds)


def measure(seconds: float) -> dict[str, Any]:
    figures = {"floor_round_trip_us": round_trip_us()}
    for name, options in ENVS.items():
        short = name.partition(":")[2]
        figures[f"{short}_steps_per_cpu_s"] = here(name, options, seconds)
        figures[f"{short}_process_steps_per_s"] = through_processes(name, options, seconds)
        figures[f"{short}_process_call_us"] = asyncio.run(one_call_us(name, options))
    return {
        "figures": figures,
        "baselines": {"steps_per_cpu_s_at_least": 20_000.0, "process_steps_per_s_at_least": 5_000.0},
    }


def actions(name: str, options: dict[str, Any]) -> list[str]:
    """Answers as a random policy gives them, drawn ahead."""
    env = make(name, **options)
    env.reset(seed=0)
    return [env.sample_random_action() for _ in range(997)]


def here(name: str, options: dict[str, Any], seconds: float) -> float:
    """Episode after episode, each to its end."""
    env, said, steps = make(name, **options), cycle(actions(name, options)), 0
    seed, began = 0, time.process_time()
    while (spent := time.process_time() - began) < seconds:
        env.reset(seed=seed)
        over = False
        while not over:
            _, _, terminated, truncated, _ = env.step(next(said))
            steps, over = steps + 1, terminated or truncated
        seed += 1
    return steps / spent


def through_processes(name: str, options: dict[str, Any], seconds: float) -> float:
    """On the clock, with a worker process for each processor."""
    said = cycle(actions(name, options))
    with make_vec(name, AT_ONCE, where="process", autoreset="same_step", **options) as envs:
        envs.reset(seed=0)
        steps, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            envs.step(list(islice(said, AT_ONCE)))
            steps += AT_ONCE
    return steps / spent


async def one_call_us(name: str, options: dict[str, Any]) -> float:
    """The median of single steps through one worker, each waited for before the next."""
    said, took = cycle(actions(name, options)), []
    async with make_async(name, where="process", **options) as env:
        over = True
        while len(took) < CALLS:
            if over:
                await env.reset(seed=len(took))
            began = time.perf_counter()
            _, _, terminated, truncated, _ = await env.step(next(said))
            took.append(time.perf_counter() - began)
            over = terminated or truncated
    return statistics.median(took) * 1e6


def round_trip_us() -> float:
    """The median of 64 bytes to another process and back, over the kind of socket that workers have."""
    ours, theirs = socket.socketpair()
    pid = os.posix_spawn(
        "/bin/cat", ["cat"], os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0), (os.POSIX_SPAWN_DUP2, theirs.fileno(), 1)],
    )  # fmt: skip
    theirs.close()
    took = []
    with ours:
        for _ in range(1000):
            began = time.perf_counter()
            ours.sendall(b"x" * 64)
            ours.recv(64, socket.MSG_WAITALL)
            took.append(time.perf_counter() - began)
        ours.shutdown(socket.SHUT_WR)
    os.waitpid(pid, 0)
    return statistics.median(took) * 1e6
