"""A fork and a snapshot: what each costs beside a fresh box, with nothing, 10 MB and 200 MB written.

In: nothing. Out: medians in ms, as the Python client sees them; a part of bench/session.py. Leaves commands to it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from rockroll import SandboxConfig
from rockroll.sandbox.client import Sandbox, delete_snapshot

ROUNDS, BIG_ROUNDS = 12, 5
SIZES_MB = (0, 10, 200)
_SNAPSHOT = "rockroll-bench"


async def figures(disk: str | None = None) -> dict[str, float]:
    """Removing what was made is not in the figures. disk: the limit of all boxes; by name they end in `_disk` then."""
    config = SandboxConfig(memory="1g", disk=disk)
    found = {"start_p50_ms": await _median(ROUNDS, lambda: Sandbox(config).start(), _delete)}
    for size in SIZES_MB:
        rounds = ROUNDS if size < 100 else BIG_ROUNDS
        name = f"{size}mb_" if size else ""
        async with Sandbox(config) as box:
            if size:
                await box.execute(["sh", "-c", f"head -c {size}m /dev/urandom >/srv/written"])
            found[f"fork_{name}p50_ms"] = await _median(rounds, box.fork, _delete)
            found[f"snapshot_{name}p50_ms"] = await _median(rounds, lambda box=box: box.snapshot(_SNAPSHOT), _forget)
    return {key.replace("_p50", "_disk_p50") if disk else key: value for key, value in found.items()}


async def _median(rounds: int, make: Callable[[], Awaitable[Any]], undo: Callable[[Any], Awaitable[Any]]) -> float:
    took = []
    for _ in range(rounds):
        begun = time.perf_counter()
        made = await make()
        took.append((time.perf_counter() - begun) * 1000)
        await undo(made)
    return statistics.median(took)


async def _delete(box: Sandbox) -> None:
    await box.delete()


async def _forget(_: object) -> None:
    await delete_snapshot(_SNAPSHOT)
