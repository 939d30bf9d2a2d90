"""What one node of a cluster is good for, looked at there.

In: the node that this runs on. Out: a NodeReport. Leaves running it on every node to ray.py, the table to
cli/doctor.py.
"""

from __future__ import annotations

import asyncio
import platform
import shutil
import time

import msgspec

from rockroll import home, units
from rockroll.placement.on_ray.host import Versions, versions

SKEW_S = 60.0
"""Clocks that differ by more make logs and time lines unreadable; a busy node takes some of it to begin with this."""


class NodeReport(msgspec.Struct, frozen=True):
    """ok: the node can take part in training. wrong: each defect with its cure, in one line."""

    node: str
    host: str
    versions: Versions | None = None
    has: str = ""
    """CPUs, GPUs, memory, as Ray reports them."""
    disk_free: int = 0
    sandboxes: bool = False
    wrong: list[str] = []
    ok: bool = True


def examine(node: str, has: str, expected: Versions, now: float) -> NodeReport:
    """now: the asking machine's time, when it asked. Blocks for some seconds: a sandbox is started and removed."""
    from rockroll.sandbox.doctor import examine as examine_sandboxes

    mine = versions()
    skew = abs(time.time() - now)
    differ = [
        f"{what} {getattr(mine, what)}, where the others have {getattr(expected, what)}: install the same"
        for what in ("rockroll", "python", "torch")
        if getattr(mine, what) != getattr(expected, what)
    ]
    wrong = list(differ)
    if skew > SKEW_S:
        wrong.append(f"the clock is {skew:.0f} s off: set it by NTP")
    report = asyncio.run(examine_sandboxes())
    wrong += [f"no sandboxes: {c.name}: {c.detail}; {c.cure}" for c in report.checks if c.needed and not c.ok]
    free = shutil.disk_usage(home.home()).free
    if free < 2 * 10**9:
        wrong.append(f"{home.home()} has {units.show_size(free)} left: free some")
    return NodeReport(
        node=node,
        host=platform.node(),
        versions=mine,
        has=has,
        disk_free=free,
        sandboxes=report.ok,
        wrong=wrong,
        ok=not differ,
    )
