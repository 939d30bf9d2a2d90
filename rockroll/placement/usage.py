"""What a process of a run takes of its machine.

In: a pid. Out: CPU seconds and memory of it and of what it started, vLLM's own processes for instance. Leaves telling
others to who asked.
"""

from __future__ import annotations

from typing import NamedTuple


class Usage(NamedTuple):
    name: str
    """Of the process in the run: engine-0."""
    node: str
    """The machine's name."""
    cpu_s: float
    """Since its start, of those of its processes that live."""
    memory: int
    """Resident bytes; pages that several share count for each."""


def of(pid: int) -> tuple[float, int]:
    """CPU seconds and resident bytes; (0, 0) of a process that is gone."""
    import psutil

    cpu, memory = 0.0, 0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0.0, 0
    for each in family:
        try:
            with each.oneshot():
                times = each.cpu_times()
                cpu += times.user + times.system
                memory += each.memory_info().rss
        except psutil.Error:
            continue  # it ended meanwhile
    return cpu, memory
