"""What a box may use at most, as quotas and limits count it.

In: a SandboxConfig. Out: numbers that add up. Pure. Leaves what is allowed to quotas.py, what there is to limits.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rockroll.sandbox.config import SandboxConfig


class Granted(NamedTuple):
    """What boxes may use at most."""

    boxes: int = 0
    cpus: float = 0.0
    memory: int = 0
    pids: int = 0


def of(config: SandboxConfig) -> Granted:
    """One box."""
    return Granted(1, config.cpus, config.memory_bytes, config.pids)


def add(several: Iterable[Granted]) -> Granted:
    """Together."""
    boxes = cpus = memory = pids = 0
    for one in several:
        boxes, cpus, memory, pids = boxes + one.boxes, cpus + one.cpus, memory + one.memory, pids + one.pids
    return Granted(boxes, cpus, memory, pids)
