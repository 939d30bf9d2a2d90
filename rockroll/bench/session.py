"""A command in a session, a program without a shell, a new session, a box made new or brought back: what each costs.

In: nothing. Out: latencies through the node's unix socket, each beside `podman exec` in the same run, the CPU time of
an episode's sandbox work, and copies (bench/files.py). Leaves models and agents to bench/relay.py and bench/rollout.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from rockroll import home
from rockroll.bench import copies, files
from rockroll.errors import SandboxError
from rockroll.sandbox import wire
from rockroll.sandbox.client import Sandbox, delete_all
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container import runtime
from rockroll.sandbox.node_client import connect_node

BACK_TO_BACK, SPACED, EXECS, EPISODES, RESTORES = 2000, 50, 20, 20, 10
SPACE_S = 0.1
STORM_BOXES, STORM_TRUE, STORM_LS = 64, 200, 30
STARTED = "for i in 1 2 3 4; do sleep 1000 & setsid sleep 1000 & (setsid sleep 1000 &) done; echo ready; wait"
"""Twelve processes, eight of them in sessions of their own, four with no parent left."""
_STEP = "ls /srv >/dev/null; echo line >>/srv/notes; cat /srv/notes"


async def run() -> dict[str, Any]:
    """About a minute. Latencies in ms, as the Python client sees them; `episode_*`: 8 commands in a recycled box;
    `kill`: from the cancellation of a command with twelve processes to the news that all are dead; `restore`: from the
    call after a box's init was killed to the first answer of its session, state replayed; `storm`: 64 boxes at once,
    each with one caller.
    """
    async with Sandbox() as box:
        await box.arun("true")
        back_to_back = await _times(BACK_TO_BACK, lambda: box.arun("true"))
        spaced = await _times(SPACED, lambda: box.arun("true"), SPACE_S)
        listing = await _times(200, lambda: box.arun("ls /"))
        execute = await _times(EXECS, lambda: box.execute(["true"]))
        opened = await _times(EXECS, lambda: _session(box))
        podman = await _times(EXECS, lambda: _podman_exec(box.id))
        killed = [await _kill(box) for _ in range(EXECS)]
        await box.recycle()
        episodes, recycled, cpu_s = await _episodes(box)
        restored = [await _restored(box) for _ in range(RESTORES)]
        trees = await files.run(box)
    true_per_s, ls_per_s = await _storm()
    arun, baseline = statistics.median(back_to_back), statistics.median(podman)
    return {
        "figures": {
            "arun_true_p50_ms": arun,
            "arun_true_p99_ms": _p99(back_to_back),
            "arun_true_every_100ms_p50_ms": statistics.median(spaced),
            "arun_ls_p50_ms": statistics.median(listing),
            "execute_true_p50_ms": statistics.median(execute),
            "session_open_p50_ms": statistics.median(opened),
            "kill_p50_ms": statistics.median(killed),
            "storm64_true_per_s": true_per_s,
            "storm64_ls_per_s": ls_per_s,
            "recycle_p50_ms": statistics.median(recycled),
            "episode_p50_ms": statistics.median(episodes),
            "episode_cpu_ms": cpu_s * 1000,
            "restore_p50_ms": statistics.median(restored),
            "times_faster_than_podman_exec": baseline / arun,
            **await copies.figures(),
            **trees["figures"],
        },
        "baselines": {"podman_exec_p50_ms": baseline, **trees["baselines"]},
    }


async def _times(count: int, call: Callable[[], Awaitable[Any]], space_s: float = 0.0) -> list[float]:
    """Milliseconds of each call."""
    took = []
    for _ in range(count):
        if space_s:
            await asyncio.sleep(space_s)
        begun = time.perf_counter()
        await call()
        took.append((time.perf_counter() - begun) * 1000)
    return took


async def _session(box: Sandbox) -> None:
    await box.create_session("bench")
    await box.close_session("bench")


async def _kill(box: Sandbox) -> float:
    command = await box.start_command(STARTED)
    async for chunk in command.output():
        if b"ready" in chunk.data:
            break
    begun = time.perf_counter()
    await command.cancel()
    return (time.perf_counter() - begun) * 1000


async def _storm() -> tuple[float, float]:
    """`true` and `ls /` a second, of 64 boxes."""
    boxes = [Sandbox(SandboxConfig(memory="64m", pids=32)) for _ in range(STORM_BOXES)]
    try:
        await asyncio.gather(*(box.start() for box in boxes))
        await asyncio.gather(*(box.arun("true") for box in boxes))
        return await _rate(boxes, "true", STORM_TRUE), await _rate(boxes, "ls /", STORM_LS)
    finally:
        await delete_all(boxes)


async def _rate(boxes: list[Sandbox], command: str, each: int) -> float:
    async def drive(box: Sandbox) -> None:
        for _ in range(each):
            await box.arun(command)

    begun = time.perf_counter()
    await asyncio.gather(*(drive(box) for box in boxes))
    return len(boxes) * each / (time.perf_counter() - begun)


async def _episodes(box: Sandbox) -> tuple[list[float], list[float], float]:
    """Milliseconds of each episode and of its recycling; CPU seconds of one, the node's and all its children's."""
    node = await connect_node()
    pid = (await node.call("node.info", wire.Empty(), type=wire.NodeInfo)).pid
    took, recycled = [], []
    before = _cpu_s(pid)
    for _ in range(EPISODES):
        begun = time.perf_counter()
        for _ in range(8):
            await box.arun(_STEP)
        middle = time.perf_counter()
        done = await box.recycle()
        if not done.ok:
            raise SandboxError(f"the benchmark's box could not be recycled: {done.reason}")
        took.append((time.perf_counter() - begun) * 1000)
        recycled.append((time.perf_counter() - middle) * 1000)
    return took, recycled, (_cpu_s(pid) - before) / EPISODES


async def _restored(box: Sandbox) -> float:
    """Milliseconds. SandboxError where the session came back without its state."""
    await box.arun("cd /srv; kept=yes")
    running = asyncio.create_task(box.arun("sleep 60"))
    await asyncio.sleep(0.05)  # it runs; its end tells that the death is known
    os.kill(await _init(box.id), signal.SIGKILL)
    await running
    begun = time.perf_counter()
    await box.restore()
    seen = await box.arun("echo $kept $PWD")
    took = (time.perf_counter() - begun) * 1000
    if seen.stdout != b"yes /srv\n":
        raise SandboxError(f"a restored session did not have its state: {seen.output!r}")
    return took


async def _init(sandbox_id: str) -> int:
    """The pid of a box's first process."""
    argv = [*runtime.rootless_prefix(), runtime.podman_binary(), "inspect", "--format", "{{.State.Pid}}"]
    process = await asyncio.create_subprocess_exec(
        *argv, f"rockroll-{home.home_id()}-{sandbox_id}", env=runtime.environment(), stdout=asyncio.subprocess.PIPE
    )
    return int((await process.communicate())[0])


def _cpu_s(pid: int) -> float:
    """CPU time of a process and of its children that have ended."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


async def _podman_exec(sandbox_id: str) -> None:
    container = f"rockroll-{home.home_id()}-{sandbox_id}"
    argv = [*runtime.rootless_prefix(), runtime.podman_binary(), "exec", container, "true"]
    process = await asyncio.create_subprocess_exec(*argv, env=runtime.environment())
    if await process.wait() != 0:
        raise SandboxError(f"podman exec {container} true ended with {process.returncode}")


def _p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[98]
