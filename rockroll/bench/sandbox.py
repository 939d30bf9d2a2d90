"""Boxes: from the warm pool, cold, and by the hundred at once, each figure beside plain Podman in the same run.

In: how many. Out: latencies, rates, memory a box; the boxes are gone at the end, also after Ctrl-C. Leaves commands
in a box to bench/session.py, and plain Podman to bench/bare.py.

A cold start is `Sandbox.start` and its first command's answer; its baseline is `create` + `start` of the same container
through the same REST service, one after the other, both by turns. The storm asks for all boxes at once, then for one
command in each at once; the baseline starts as many containers, as many at a time as was fastest here for it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from rockroll.bench.bare import bare
from rockroll.errors import HostError, SandboxError, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.client import Sandbox, delete_all, finish
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.node_client import connect_node
from rockroll.sandbox.warm_pools import delete_warm_pool, set_warm_pool
from rockroll.sandbox.wire import PoolInfo

CONFIG = SandboxConfig(memory="64m", pids=32)
POOL, POOL_ROUNDS, COLD_ROUNDS = 8, 24, 12
BARE_AT_ONCE = (4, 8)
"""Plain Podman was as fast with four at once as with eight on two cores; per two cores, the faster one counts."""
TRIAL = 16
"""Containers for finding out which."""
SETTLE_S = 1.0
"""The kernel gives back what starts have taken a moment later: only after it memory is compared."""


async def run(count: int = 500, *, podman: bool = True) -> dict[str, Any]:
    """About two minutes for 500. Raises UsageError, HostError; QuotaExceeded where node.yaml does not allow so many.

    podman: plain Podman starts as many, for comparison; without it the storm takes half the time.

    pool_first_command: from the call for a box to its first command's answer, one after the other, the pool full.
    idle_box_mib: what MemAvailable has fallen by, a box with its session: conmon, the kernel's part and the node's too.
    """
    if count < 1:
        raise UsageError(f"--count: at least one sandbox; got {count}")
    async with Sandbox(CONFIG) as first:  # the node is up, the image is in the page cache
        await first.arun("true")
    pooled = await _pooled()
    cold, started, plain = await _cold()
    beside = await _bare_storm(count) if podman else None
    storm = await _storm(count)
    figures = {
        "pool_first_command_p50_ms": statistics.median(pooled),
        "pool_first_command_p99_ms": _p99(pooled),
        "cold_first_command_p50_ms": statistics.median(cold),
        "cold_start_p50_ms": statistics.median(started),
        "cold_first_command_times_podman": statistics.median(cold) / statistics.median(plain),
        **storm,
    }
    baselines: dict[str, float] = {"podman_create_start_p50_ms": statistics.median(plain)}
    if beside:
        rate, at_once = beside
        figures["storm_times_podman"] = storm["storm_per_s"] / rate
        figures["storm_first_command_times_podman"] = storm["storm_first_command_per_s"] / rate
        baselines |= {"podman_storm_per_s": rate, "podman_storm_at_once": at_once}
    return {"figures": figures, "baselines": baselines, "machine": {"count": count, "memory_mib": _memory()[0]}}


async def _pooled() -> list[float]:
    name = f"rockroll-bench-{os.getpid()}"
    info = await set_warm_pool(name, POOL, CONFIG, owner="connection", wait=True)
    try:
        if info.fault:
            raise HostError(f"the benchmark's pool could not be filled: {info.fault}")
        node, took = await connect_node(), []
        for _ in range(POOL_ROUNDS):
            box = Sandbox(CONFIG)
            try:
                took.append(await _timed(lambda box=box: _first_command(box)))
            finally:
                await finish(box.delete())
            await node.call("pool.filled", wire.PoolRef(name=name), type=PoolInfo)
        return took
    finally:
        await finish(delete_warm_pool(name))


async def _cold() -> tuple[list[float], list[float], list[float]]:
    """Milliseconds to the first command, to the box, and of plain Podman."""
    cold, started, podman = [], [], []
    async with bare(CONFIG) as plain:
        for _ in range(COLD_ROUNDS):
            box = Sandbox(CONFIG)
            try:
                started.append(await _timed(box.start))
                cold.append(started[-1] + await _timed(lambda box=box: _true(box)))
            finally:
                await finish(box.delete())
            podman.append(await _timed(plain.start))
            await plain.remove_all()
    return cold, started, podman


async def _bare_storm(count: int) -> tuple[float, int]:
    """Containers a second, and how many were started at a time."""
    rates = {}
    scale = max(1, (os.cpu_count() or 2) // 2)
    for at_once in BARE_AT_ONCE:
        async with bare(CONFIG) as plain:
            rates[at_once * scale] = TRIAL / await plain.storm(TRIAL, at_once * scale)
    fastest = max(rates, key=lambda at_once: rates[at_once])
    _say(f"plain Podman: {count} containers, {fastest} at a time")
    async with bare(CONFIG) as plain:
        return count / await plain.storm(count, fastest), fastest


async def _storm(count: int) -> dict[str, float]:
    """All asked for at once; then one command in each at once; then one in each, one after the other."""
    _say(f"rockroll: {count} sandboxes at once")
    boxes = [Sandbox(CONFIG) for _ in range(count)]
    before = await _settled_memory()
    cpu = _cpu_s(await _node_pid())
    begun = time.perf_counter()
    try:
        failed = [error for error in await _all(boxes, lambda box: box.start()) if error]
        started = time.perf_counter() - begun
        failed += [error for error in await _all(boxes, _true) if error]
        answered = time.perf_counter() - begun
        cpu = _cpu_s(await _node_pid()) - cpu
        after = await _settled_memory()
        again = [await _timed(lambda box=box: _true(box)) for box in boxes]
    finally:
        removing = time.perf_counter()
        await finish(delete_all(boxes))
    if failed:
        raise SandboxError(f"{len(failed)} of {count} sandboxes did not start or answer; the first: {failed[0]}")
    return {
        "storm_per_s": count / started,
        "storm_first_command_per_s": count / answered,
        "storm_cpu_ms_per_box": cpu / count * 1000,
        "alive_answering": len(again),
        "alive_true_p50_ms": statistics.median(again),
        "alive_true_max_ms": max(again),
        "idle_box_mib": (before - after) / count,
        "remove_per_s": count / (time.perf_counter() - removing),
    }


async def _all(boxes: list[Sandbox], call: Callable[[Sandbox], Awaitable[Any]]) -> list[BaseException | None]:
    done = await asyncio.gather(*(call(box) for box in boxes), return_exceptions=True)
    return [error if isinstance(error, BaseException) else None for error in done]


async def _first_command(box: Sandbox) -> None:
    await box.start()
    await _true(box)


async def _true(box: Sandbox) -> None:
    done = await box.arun("true")
    if done.exit_code != 0:
        raise SandboxError(f"`true` in sandbox {box.id} ended with {done.exit_code} ({done.outcome})")


async def _timed(call: Callable[[], Awaitable[Any]]) -> float:
    begun = time.perf_counter()
    await call()
    return (time.perf_counter() - begun) * 1000


async def _settled_memory() -> float:
    await asyncio.sleep(SETTLE_S)
    return _memory()[1]


def _memory() -> tuple[float, float]:
    """MiB of this host: all, and available."""
    with open("/proc/meminfo") as file:
        found = dict(line.split(":", 1) for line in file)
    total, available = (int(found[name].split()[0]) / 1024 for name in ("MemTotal", "MemAvailable"))
    return total, available


async def _node_pid() -> int:
    return (await (await connect_node()).call("node.info", wire.Empty(), type=wire.NodeInfo)).pid


def _cpu_s(pid: int) -> float:
    """CPU time of a process and of its children that have ended."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[98]


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr)
