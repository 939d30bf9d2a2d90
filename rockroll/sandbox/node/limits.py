"""Every limit of this host that one more box would hit, and how many boxes it can hold.

In: Facts, read from the kernel and Podman's locks; what boxes are granted; limits of node.yaml. Out: a Room a limit, a
sentence where one has none left, the number of boxes. Pure but for `read`. Leaves quotas to quotas.py.

A limit that is met by a failing container says "no space left on device", "disk quota exceeded" or nothing at all, and
half a box is left. So it is known here, before anything is made. What a box costs stands below, as measured.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rockroll import units
from rockroll.sandbox.boxes.grant import Granted
from rockroll.sandbox.container import locks
from rockroll.sandbox.container.spawner import FILES_A_START, STARTS_AT_ONCE
from rockroll.sandbox.linux.kept import KEPT
from rockroll.sandbox.node.node_config import Limits

FILES = 9
"""Descriptors of the node for a box with one session: pidfds of init, conmon and the shell, the model endpoint's
socket, the pipe to the shell, its reports and state, two streams."""
FILES_KEPT_FREE = KEPT + STARTS_AT_ONCE * FILES_A_START + 200
"""For files that are open while they are used, processes being started, calls under way, clients."""
THREADS = 5
"""An idle box with a session: init, bash, conmon's two, and what a command is about to start."""
THREADS_KEPT_FREE = 512
MEMORY = 5 * 2**20
"""An idle box with its session, conmon and the kernel's part."""
PIPES, PIPE_PAGES = 5, 16
"""A session's; a pipe holds 16 pages."""
DISK, INODES = 2**18, 64
"""An idle box: what Podman and the overlay write."""
NAMESPACES = ("user", "mnt", "pid", "ipc", "uts", "net")
_SYS = Path("/proc/sys")


class Facts(NamedTuple):
    """What the host has, and how much of it is taken now; None: no limit, or none that could be read."""

    locks: locks.Locks | None
    pids_max: int
    """The least of kernel.pid_max, kernel.threads-max and the cgroups that the node is in."""
    pids_rule: str
    """Which of them that is."""
    threads: int
    files_max: int
    files: int
    namespaces_max: int
    namespaces_rule: str
    pipe_pages_max: int | None
    """None where this user is not held to it."""
    memory: int
    memory_free: int
    disk_free: int
    inodes_free: int
    disk_at: str


class Room(NamedTuple):
    """One limit."""

    name: str
    most: float
    used: float
    each: float
    """What one more box takes."""
    rule: str
    cure: str
    bytes: bool = False

    @property
    def boxes(self) -> int:
        """How many more fit."""
        return max(0, math.floor((self.most - self.used) / self.each)) if self.each > 0 else 1 << 30

    def refusal(self) -> str:
        """The sentence for the box that does not fit."""
        show = units.show_size if self.bytes else lambda amount: f"{amount:,.0f}"
        return (
            f"this host has no room for another sandbox: {self.name}: {self.rule} allows {show(self.most)},"
            f" {show(self.used)} are taken and it needs {show(self.each)}; delete some, or {self.cure}"
        )


def rooms(facts: Facts, granted: Granted, more: Granted, policy: Limits, alive: int = 0, making: int = 0) -> list[Room]:
    """Every limit. granted: to all boxes there are. more: to the one that is asked for. alive: how many boxes there
    are. making: how many of them were promised and are not there yet: the facts know nothing of these."""
    keep_memory, keep_disk = units.size(policy.keep_memory), units.size(policy.keep_disk)
    pids = policy.pids_overcommit * facts.pids_max
    fitting = f"ask for fewer pids, or raise {facts.pids_rule} (sysctl -w kernel.pid_max=4194304)"
    found = [
        Room("pids", pids, granted.pids, more.pids, f"{facts.pids_rule} × limits.pids_overcommit", fitting),
        Room(
            "processes",
            facts.pids_max - THREADS_KEPT_FREE,
            facts.threads + making * THREADS,
            THREADS,
            facts.pids_rule,
            f"end processes, or raise {facts.pids_rule}",
        ),
        Room(
            "memory limits",
            policy.memory_overcommit * facts.memory,
            granted.memory,
            more.memory,
            "the host's memory × limits.memory_overcommit",
            "ask for less memory, or raise limits.memory_overcommit in node.yaml",
            bytes=True,
        ),
        Room(
            "free memory",
            facts.memory_free - keep_memory,
            making * MEMORY,
            MEMORY,
            "what is free now less limits.keep_memory",
            "end what takes memory on this host",
            bytes=True,
        ),
        Room(
            "open files",
            facts.files_max - FILES_KEPT_FREE,
            # Those being made hold none yet, and a box may yet open its session.
            max(facts.files - KEPT, alive * FILES),
            FILES,
            "the node's hard limit on open files less what it keeps free",
            "raise it: `* hard nofile 1048576` in /etc/security/limits.d/rockroll.conf, then log in anew",
        ),
        Room(
            "namespaces",
            facts.namespaces_max,
            alive,
            1,
            facts.namespaces_rule,
            f"raise it: sysctl -w {facts.namespaces_rule}=65536",
        ),
        Room(
            "disk",
            facts.disk_free - keep_disk,
            making * DISK,
            DISK,
            f"what is free under {facts.disk_at} less limits.keep_disk",
            "free some space there",
            bytes=True,
        ),
        Room(
            "inodes",
            facts.inodes_free,
            making * INODES,
            INODES,
            f"what is free under {facts.disk_at}",
            "remove files there",
        ),
    ]
    if facts.locks is not None:
        found.append(Room("Podman locks", facts.locks.total, facts.locks.taken + making, 1, "num_locks", locks.CURE))
    if facts.pipe_pages_max is not None:
        pages = PIPES * PIPE_PAGES
        cure = "raise it: sysctl -w fs.pipe-user-pages-hard=0"
        found.append(Room("pipe pages", facts.pipe_pages_max, alive * pages, pages, "fs.pipe-user-pages-hard", cure))
    return found


def refusal(found: Iterable[Room]) -> str | None:
    """Why one more box cannot be; None where it can."""
    full = [room for room in found if room.boxes < 1]
    return full[0].refusal() if full else None


def binding(found: Iterable[Room]) -> list[Room]:
    """The limits, the one that binds first at the front."""
    return sorted(found, key=lambda room: room.boxes)


def read(store: Path, *, file_locks: bool = False) -> Facts:
    """The host's facts now; about 0.3 ms.

    store: Podman's. file_locks: whether Podman's locks are files, without a limit. Call it in the node: files and
    pipes are counted for this process.
    """
    pids_max, pids_rule = _pids()
    most = {name: _number(_SYS / f"user/max_{name}_namespaces") for name in NAMESPACES}
    scarce = min(most, key=lambda name: math.inf if most[name] is None else most[name])  # type: ignore[arg-type,return-value]
    memory, free = _memory()
    place = store if store.exists() else store.parent
    stat = os.statvfs(place)
    pipe_hard = _number(_SYS / "fs/pipe-user-pages-hard")
    held = pipe_hard and not _may_any_pipe()
    return Facts(
        locks=None if file_locks else locks.read(),
        pids_max=pids_max,
        pids_rule=pids_rule,
        threads=int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2]),
        files_max=_files_max(),
        files=_files(),
        namespaces_max=most[scarce] if most[scarce] is not None else 1 << 30,  # type: ignore[arg-type]
        namespaces_rule=f"user.max_{scarce}_namespaces",
        pipe_pages_max=pipe_hard if held else None,
        memory=memory,
        memory_free=free,
        disk_free=stat.f_bavail * stat.f_frsize,
        inodes_free=stat.f_favail if stat.f_files else 1 << 40,  # btrfs counts none
        disk_at=str(place),
    )


def slow_pipes() -> int | None:
    """How many sessions this user may have before the kernel makes their pipes small; None: any number."""
    soft = _number(_SYS / "fs/pipe-user-pages-soft")
    return soft // (PIPES * PIPE_PAGES) if soft and not _may_any_pipe() else None


def _files_max() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit


def _files() -> int:
    """About as many as are open: the kernel gives out the lowest number that is free."""
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return fd


def _pids() -> tuple[int, str]:
    found = {
        "kernel.pid_max": _number(_SYS / "kernel/pid_max"),
        "kernel.threads-max": _number(_SYS / "kernel/threads-max"),
    }
    for group in _groups("pids"):
        found[f"pids.max of {group}"] = _number(group / "pids.max")
    known = {rule: value for rule, value in found.items() if value is not None}
    rule = min(known, key=lambda name: known[name])
    return known[rule], rule


def _memory() -> tuple[int, int]:
    """All of it and what is free, of the host or of the cgroups that the node is in."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for group in _groups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = _number(group / limit), _number(group / used)
            if most is not None and now is not None and most < total:
                total = most
                free = min(free, max(0, most - now + _reclaimable(group)))
    return total, free


def _reclaimable(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split(" ", 1) for line in lines)
    return sum(int(stat.get(name, 0)) for name in ("inactive_file", "active_file"))


def _groups(controller: str) -> list[Path]:
    """The node's cgroup of a controller and those above it. Boxes are in others, but in the same tree's top."""
    root = Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            base = root / controller
        elif not names and (root / "cgroup.controllers").exists():
            base = root
        else:
            continue
        own = base / path.lstrip("/")
        return [group for group in (own, *own.parents) if group.is_relative_to(base) and group.is_dir()]
    return []


def _may_any_pipe() -> bool:
    """CAP_SYS_ADMIN or CAP_SYS_RESOURCE on the host itself."""
    if "_CONTAINERS_ROOTLESS_UID" in os.environ:
        return False
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & (1 << 21 | 1 << 24))
    return False


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
        return None if text == "max" or int(text) >= 2**62 else int(text)
    except (OSError, ValueError):
        return None
