"""How much memory processes can still take here.

In: /proc and the cgroup of this process. Out: bytes. Leaves what is done about it to those who ask.
"""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """Bytes that processes of this machine and cgroup can still take."""
    import psutil

    free = [psutil.virtual_memory().available]
    for folder, limit, used in (
        (CGROUP, "memory.max", "memory.current"),
        (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            taken = int((folder / used).read_text()) - _pages_of_files((folder / "memory.stat").read_text())
            free.append(int((folder / limit).read_text()) - taken)
        except (OSError, ValueError, KeyError):  # no cgroup of that kind, or `max`
            continue
    return max(0, min(free))


def _pages_of_files(stat: str) -> int:
    """What a cgroup is charged for and gives back when asked: the page cache. Without this a container that has read
    much would look full."""
    found = dict(line.split(" ", 1) for line in stat.splitlines())
    total = "total_" if "total_inactive_file" in found else ""
    return int(found[f"{total}inactive_file"]) + int(found[f"{total}active_file"])
