"""What one sandbox feels of eight others that are at every limit they have.

In: nothing. Out: the latency of `arun("true")` in a box of its own, alone and beside eight boxes that burn CPU, run
into their memory limit, fork up to their limit on processes and write to disk, all at once. Leaves the box's own speed
to bench/session.py.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import Any

from rockroll.errors import SandboxError
from rockroll.sandbox.client import Sandbox, delete_all
from rockroll.sandbox.config import SandboxConfig

NEIGHBOURS = 8
COMMANDS, PAUSE_S = 400, 0.01
SETTLE_S = 3.0
_CONFIG = SandboxConfig(cpus=1, memory="96m", pids=48)
_LOADS = {
    "cpu": "while :; do :; done",
    "memory": "while :; do python3 -c 'b = bytearray(1 << 30)'; done",
    "pids": "while :; do for i in {1..60}; do sleep 0.2 & done 2>/dev/null; wait; done",
    "disk": "while :; do dd if=/dev/zero of=/srv/filled bs=1M count=32 conv=fsync; done",
}


async def run() -> dict[str, Any]:
    """About 30 s. Milliseconds as the Python client sees them, one command every 10 ms."""
    async with Sandbox(_CONFIG) as box:
        await box.arun("true")
        await _times(box, COMMANDS // 4)
        alone = await _times(box, COMMANDS)
        beside: dict[str, list[float]] = {}
        others: dict[str, float] = {}
        for name, loads in {**{name: [name] for name in _LOADS}, "all": list(_LOADS)}.items():
            beside[name], others[f"other_cpus_beside_{name}"] = await _beside(box, loads)
    figures = {f"arun_true_beside_{name}_p99_ms": _p99(took) for name, took in beside.items()}
    return {
        "figures": {
            **figures,
            "arun_true_beside_all_p50_ms": statistics.median(beside["all"]),
            "times_slower_p99": figures["arun_true_beside_all_p99_ms"] / _p99(alone),
        },
        "baselines": {"arun_true_alone_p50_ms": statistics.median(alone), "arun_true_alone_p99_ms": _p99(alone)},
        "machine": {"neighbours": NEIGHBOURS, **others},
    }


async def _beside(box: Sandbox, loads: list[str]) -> tuple[list[float], float]:
    """Milliseconds of each command while the neighbours run these; how many CPUs all else on this machine had busy."""
    others = [Sandbox(_CONFIG) for _ in range(NEIGHBOURS)]
    burning: list[asyncio.Task[Any]] = []
    try:
        await asyncio.gather(*(other.start() for other in others))
        for other in others:
            burning += [asyncio.ensure_future(_burn(other, load)) for load in loads]
        await asyncio.sleep(SETTLE_S)
        begun, before = time.perf_counter(), await _busy_s(others)
        took = await _times(box, COMMANDS)
        other_cpus = (await _busy_s(others) - before) / (time.perf_counter() - begun)
        for task in burning:
            if task.done():
                task.result()  # raises: what ends a load is an error
        return took, other_cpus
    finally:
        for task in burning:
            task.cancel()
        await asyncio.gather(*burning, return_exceptions=True)
        await delete_all(others)


async def _burn(box: Sandbox, load: str) -> None:
    """For ever. The kernel may choose the load's own shell when it kills for memory: then it is begun again."""
    while True:
        seen = await box.arun(_LOADS[load], session=load)
        if seen.outcome == "lost":
            raise SandboxError(f"a neighbour died of its {load} load, and its end is nobody's to measure")


async def _busy_s(others: list[Sandbox]) -> float:
    """CPU seconds of this machine that were not these boxes'."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, irq, softirq = map(int, file.readline().split()[1:8])
    theirs = [(await other.stats()).cpu_s for other in others]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - sum(theirs)


async def _times(box: Sandbox, count: int) -> list[float]:
    took = []
    for _ in range(count):
        await asyncio.sleep(PAUSE_S)
        begun = time.perf_counter()
        await box.arun("true")
        took.append((time.perf_counter() - begun) * 1000)
    return took


def _p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[98]
