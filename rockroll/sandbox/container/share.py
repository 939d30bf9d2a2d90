"""What a box is told about the machine: its own share of it, in place of the host's.

In: a SandboxConfig; of a box that runs, its memory cgroup and the limits that do not hold. Out: two files, bound
read-only over /proc/meminfo and /sys/devices/system/cpu/online, and OMP_NUM_THREADS. Leaves enforcing to profile.py.

meminfo is written from outside when a command begins, and only if the use has changed by STEP: nothing runs for it
between two commands, and nothing in the box waits for it. A program that reads it again and again sees the figures of
the moment at which the box's last command began; the limit itself never changes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rockroll import units
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.linux.kept import KeptFile

STEP = 1 << 20
"""A running box's use wavers by some hundred KiB, since the kernel charges in batches."""
MEMINFO, ONLINE = "/proc/meminfo", "/sys/devices/system/cpu/online"


class Share:
    """The two files of one box. Their inodes stay: the box sees them through a mount."""

    def __init__(self, folder: Path, config: SandboxConfig) -> None:
        """folder: the box's own on the host, of which it sees nothing."""
        self._meminfo, self._online = folder / "meminfo", folder / "online"
        self._limit = config.memory_bytes
        self._cpus = cpus_seen(config)
        self._file: KeptFile | None = None
        self._usage: KeptFile | None = None
        self._group: Path | None = None
        self._told = -STEP
        self.variables: dict[str, str] = {}
        """For every program: what tells nproc and OpenMP of the CPU quota, where it holds and is below the CPUs."""

    def prepare(self) -> list[dict[str, Any]]:
        """Makes the files where they are missing; the mounts that show them."""
        self._open()
        if not self._online.exists():
            self._online.write_text(units.show_numbers(self._cpus) + "\n")
        options = ["bind", "ro", "nosuid", "nodev", "noexec"]
        return [
            {"type": "bind", "source": str(source), "destination": target, "options": options}
            for source, target in ((self._meminfo, MEMINFO), (self._online, ONLINE))
        ]

    def _open(self) -> None:
        self.close()
        self._file = KeptFile(self._meminfo, os.O_RDWR | os.O_CREAT)
        self._meminfo.chmod(0o644)  # whatever this process's umask is
        if not self._meminfo.stat().st_size:
            self._write(meminfo(self._limit, 0, {}))

    def attach(self, group: Path | None, unenforced: Collection[str], cpus: Collection[int]) -> None:
        """The box runs. group: its memory cgroup. unenforced: of profile.verify. cpus: that its cgroup allows."""
        self._open()
        if group is None or "memory" in unenforced:
            # Without a limit the host's memory is its share: as it is now, for the box's own use is not counted.
            self._write(Path(MEMINFO).read_text())
        else:
            v2 = (group / "memory.current").exists()
            self._usage = KeptFile(group / ("memory.current" if v2 else "memory.usage_in_bytes"))
            self._group, self._told = group, -STEP
        self.variables = {}
        if "cpus" in unenforced:
            self._online.write_text(units.show_numbers(cpus) + "\n")
        elif len(self._cpus) < len(cpus):
            self.variables["OMP_NUM_THREADS"] = str(len(self._cpus))

    def refresh(self) -> None:
        """A command begins. Some microseconds, mostly one: then nothing has changed."""
        if self._usage is None:
            return
        try:
            used = int(os.pread(self._usage.fd(), 32, 0))
            if abs(used - self._told) < STEP:
                return
            assert self._group is not None
            stat = dict(line.split(" ", 1) for line in (self._group / "memory.stat").read_text().splitlines())
        except OSError:
            return  # the box is ending
        self._told = used
        v1 = "total_cache" in stat
        parts = {name: int(stat.get(f"total_{name}" if v1 else name, 0)) for name in _PARTS}
        parts["cache"] = int(stat["total_cache"] if v1 else stat.get("file", 0))
        self._write(meminfo(self._limit, used, parts))

    def _write(self, text: str) -> None:
        assert self._file is not None
        data, fd = text.encode(), self._file.fd()
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))

    def close(self) -> None:
        """Lets go of the files; they go with the box's folder."""
        for file in (self._file, self._usage):
            if file is not None:
                file.close()
        self._file = self._usage = None


_PARTS = ("inactive_file", "active_file", "inactive_anon", "active_anon", "shmem", "slab_reclaimable")


def cpus_seen(config: SandboxConfig) -> frozenset[int]:
    """As many CPUs as the quota is worth, rounded up; of those in the cpuset, or of the host's."""
    allowed = sorted(config.parsed_cpuset or os.sched_getaffinity(0))
    return frozenset(allowed[: max(1, math.ceil(config.cpus))])


def meminfo(limit: int, used: int, parts: dict[str, int]) -> str:
    """/proc/meminfo of a box. All in bytes; parts: of memory.stat, `cache` the page cache, tmpfs included.

    Memory is memory and swap together, so there is no swap to tell of.
    """
    free = max(0, limit - used)
    files = parts.get("inactive_file", 0) + parts.get("active_file", 0)
    anon = parts.get("inactive_anon", 0) + parts.get("active_anon", 0)
    shmem, slab = parts.get("shmem", 0), parts.get("slab_reclaimable", 0)
    rows = {
        "MemTotal": limit,
        "MemFree": free,
        "MemAvailable": min(limit, free + files + slab),
        "Buffers": 0,
        "Cached": parts.get("cache", 0),
        "SwapCached": 0,
        "Active": parts.get("active_file", 0) + parts.get("active_anon", 0),
        "Inactive": parts.get("inactive_file", 0) + parts.get("inactive_anon", 0),
        "Active(anon)": parts.get("active_anon", 0),
        "Inactive(anon)": parts.get("inactive_anon", 0),
        "Active(file)": parts.get("active_file", 0),
        "Inactive(file)": parts.get("inactive_file", 0),
        "SwapTotal": 0,
        "SwapFree": 0,
        "AnonPages": max(0, anon - shmem),
        "Shmem": shmem,
        "Slab": slab,
        "SReclaimable": slab,
    }
    return "".join(f"{name + ':':<15}{value // 1024:>9} kB\n" for name, value in rows.items())
