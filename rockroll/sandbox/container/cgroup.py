"""Kill scope: which processes a session or an execute has started, and their certain end.

In: the pid of a box's init. Out: a Scope for each session: its processes, found through a cgroup of its own (v1: a
child of the box's pids group; v2: of its group), or, where this host gives no cgroup, through the process tree and a
mark in the environment. Leaves when to kill to session.py and life.py, and limits to profile.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from rockroll.sandbox.container import profile
from rockroll.sandbox.container.meter import Counter, Meter
from rockroll.sandbox.linux.kept import KeptFile

MARK = "ROCKROLL_SCOPE"
"""Environment variable that names the scope, for hosts without cgroups."""

BACKGROUND = "b"
"""Ends the name of the group of what a scope has let go."""

KILL_PAUSE_S = 0.001
"""A killed process needs a moment to leave; on v1 nothing tells when a group has become empty."""


class Usage(NamedTuple):
    """What a box uses."""

    cpu_s: float
    memory_bytes: int
    pids: int
    """Processes, init among them."""


class BoxCgroup:
    """The cgroups of one box. `enforced` is False where this process may make none: then scopes follow the tree."""

    def __init__(self, init_pid: int, starts_in: Callable[[bool], bool]) -> None:
        """starts_in: whether the OCI runtime can start a process in a child group, given v2 or not."""
        self.init_pid = init_pid
        groups = profile.cgroups(init_pid)
        self.memory = groups.get("memory")
        self.v2 = "pids" not in groups or (groups["pids"] / "cgroup.controllers").exists()
        self.path = groups.get("unified") if self.v2 else groups.get("pids")
        self.enforced = self.path is not None and starts_in(self.v2) and self._may_make(self.path)
        self._namespace = _pid_namespace(init_pid)
        self._free: list[str] = []
        self._made = 0
        self._oom_kills = _oom_counter(self.memory)
        self._pids_refused = _pids_counter(self.path)

    def meter(self, group: Path | None) -> Meter:
        """Counts for a scope that is `group`, or that has none of its own.

        A refused fork is counted where it was tried (v1, and v2 before Linux 6.11) or where the limit is, never in both
        places.
        """
        counters = [self._oom_kills, _pids_counter(group) if group else self._pids_refused]
        return Meter([*counters, self._pids_refused] if group and self.v2 else counters)

    def _may_make(self, path: Path) -> bool:
        probe = path / f"rockroll-{self.init_pid}-0"
        try:
            probe.mkdir(exist_ok=True)
        except OSError:
            return False
        # Within a delegated tree the group can be made but a process of another subtree not be moved: prove a write.
        return os.access(probe / "cgroup.procs", os.W_OK)

    def scope(self, *, keeps: bool = False) -> Scope:
        """A scope with no process in it. Groups are used again: making one is cheap, moving into it is not.

        keeps: what it lets go stays known to it (`Scope.everything`); else it is the box's own.
        """
        if self._free:
            name = self._free.pop()
        else:
            self._made += 1
            # Init's pid: after a restart nobody who still holds an old scope must meet a new one of its name.
            name = f"rockroll-{self.init_pid}-{self._made}"
        if not self.enforced or self.path is None:
            return TreeScope(self, f"{self.init_pid}.{name}")
        (self.path / name).mkdir(exist_ok=True)
        return CgroupScope(self, name, keeps)

    def give_back(self, scope: Scope) -> None:
        """The scope is empty and no longer used."""
        if isinstance(scope, CgroupScope):
            scope.close()
            self._free.append(scope.name)

    def everything(self) -> list[int]:
        """Every process of the box but init."""
        if self.enforced and self.path is not None:
            # Twice: one that is moved meanwhile, maybe to a group that is made for it, may be in none that is read.
            found = {pid for _ in range(2) for group in self._groups(self.path) for pid in _procs(group)}
        else:
            found = {pid for pid in _all_pids() if self.holds(pid)}
        return sorted(found - {self.init_pid})

    def _groups(self, path: Path) -> list[Path]:
        return [path, *(p for p in path.iterdir() if p.is_dir())]

    def holds(self, pid: int) -> bool:
        """Whether pid lives in the box's pid namespace."""
        try:
            return _pid_namespace(pid) == self._namespace
        except OSError:
            return False

    def oom_kills(self) -> int:
        """How many of the box's processes the kernel has killed for memory; 0 where it does not say."""
        return _counter(self.memory, "memory.events", "oom_kill") or _counter(
            self.memory, "memory.oom_control", "oom_kill"
        )

    def usage(self) -> Usage:
        """What the box uses now; zero where this host does not count it."""
        groups = profile.cgroups(self.init_pid)
        memory, cpu = groups.get("memory"), groups.get("cpuacct") or groups.get("cpu")
        return Usage(
            cpu_s=_counter(cpu, "cpuacct.usage", "") / 1e9 or _counter(cpu, "cpu.stat", "usage_usec") / 1e6,
            memory_bytes=_counter(memory, "memory.usage_in_bytes", "") or _counter(memory, "memory.current", ""),
            pids=len(self.everything()) + 1,
        )

    def remove(self) -> None:
        """Removes the groups made here; those of a living box stay."""
        if not self.enforced or self.path is None:
            return
        for number in range(self._made + 1):
            for suffix in ("", BACKGROUND):
                try:
                    (self.path / f"rockroll-{self.init_pid}-{number}{suffix}").rmdir()
                except OSError:
                    continue  # gone with the box, or not empty


class Scope(Protocol):
    """The processes that one session or execute has started."""

    mark: str
    """Value of MARK in their environment, where that is how they are found."""
    arguments: list[str]
    """For the OCI runtime's exec: starts the process in this scope."""
    group: tuple[str, Path] | None
    """The same for spawner.py: (controller, cgroup)."""
    meter: Meter
    """Limits met, from its own `begin` on."""

    def pids(self) -> list[int]:
        """All of them, but for those let go."""
        ...

    def everything(self) -> list[int]:
        """All of them, also those let go: what must not outlive the session."""
        ...

    def begin(self) -> None:
        """A command begins: `started` names what is started from now on."""
        ...

    def started(self) -> list[int]:
        """What the command under way has started; the shell is among them."""
        ...

    def survivors(self) -> list[int]:
        """What must be let go after a command, so that the next one's end does not kill it."""
        ...

    def adopt(self, pid: int) -> None:
        """Puts a process that was just started into the scope, where its start did not."""
        ...

    def release(self, pids: Iterable[int]) -> None:
        """Lets processes go: background jobs that a later command's end must not kill. May block some ms."""
        ...


class CgroupScope:
    """A child group. Whatever a process does (setsid, double fork), its children stay in it. What is let go moves to a
    second group beside it, so that it is still known whose it is, or to the box's own."""

    def __init__(self, box: BoxCgroup, name: str, keeps: bool) -> None:
        assert box.path is not None
        self.name, self.mark = name, ""
        self._path = box.path / name
        self._background = box.path / f"{name}{BACKGROUND}" if keeps else None
        self._outer = box.path
        try:
            self._count: KeptFile | None = KeptFile(self._path / "pids.current")
        except OSError:
            self._count = None  # v2 without the pids controller below the box's group
        self.arguments = ["--cgroup", name if box.v2 else f"pids:{name}"]
        self.group: tuple[str, Path] | None = ("unified" if box.v2 else "pids", self._path)
        self.meter = box.meter(self._path)

    def pids(self) -> list[int]:
        return _procs(self._path)

    started = pids

    def survivors(self) -> list[int]:
        # The number is read in a tenth of the time of the list, and mostly it is one: the shell is alone.
        if self._count is not None and os.pread(self._count.fd(), 16, 0) == b"1\n":
            return []
        return self.pids()

    def everything(self) -> list[int]:
        return _procs(self._path) + (_procs(self._background) if self._background else [])

    def begin(self) -> None:
        """The shell is alone in its group: whatever else is there belongs to this command."""

    def close(self) -> None:
        if self._count is not None:
            self._count.close()
            self._count = None

    def adopt(self, pid: int) -> None:
        # Moving costs 8-12 ms (an RCU grace period), so only where the runtime did not start it here.
        if pid not in self.pids():
            _move(self._path, pid)

    def release(self, pids: Iterable[int]) -> None:
        if self._background:
            self._background.mkdir(exist_ok=True)
        for pid in pids:
            # Each move takes some ms: one further back in the list may have ended, and its number be a host's process.
            if pid in self.pids():
                _move(self._background or self._outer, pid)


class TreeScope:
    """Descendants of a process that was put in, and whatever carries the mark. A process that drops its environment
    and leaves its parents escapes: such a box says so in `unenforced` ("kill-scope")."""

    def __init__(self, box: BoxCgroup, mark: str) -> None:
        self._box, self.mark = box, mark
        self.group: tuple[str, Path] | None = None
        self.arguments: list[str] = []
        self.meter = box.meter(None)
        self._roots: set[tuple[int, int]] = set()
        self._released: set[tuple[int, int]] = set()
        self._begun = 0

    def begin(self) -> None:
        self._begun = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))

    def started(self) -> list[int]:
        # By age, because asking /proc after every command for what it left would cost more than the command. Age is
        # known to a clock tick: a background job started within 10 ms before the command counts as the command's.
        return [pid for pid in self.pids() if _birth(pid) >= self._begun]

    def survivors(self) -> list[int]:
        return []

    def adopt(self, pid: int) -> None:
        self._roots.add((pid, _birth(pid)))

    def pids(self) -> list[int]:
        return [pid for pid in self.everything() if (pid, _birth(pid)) not in self._released]

    def everything(self) -> list[int]:
        wanted = f"{MARK}={self.mark}".encode()
        parents: dict[int, int] = {}
        found: set[int] = set()
        for pid in _all_pids():
            if not self._box.holds(pid):
                continue
            parents[pid] = _parent(pid)
            if (pid, _birth(pid)) in self._roots or wanted in _environ(pid):
                found.add(pid)
        grown = True
        while grown:
            children = {pid for pid, parent in parents.items() if parent in found and pid not in found}
            found |= children
            grown = bool(children)
        # By number, as a cgroup lists its own: a parent gets a signal before the death of its child tells it to go on.
        return sorted(pid for pid in found if _alive(pid))

    def release(self, pids: Iterable[int]) -> None:
        self._released = {known for known in self._released if _birth(known[0]) == known[1]}
        self._released |= {(pid, _birth(pid)) for pid in pids}


def send(find: Callable[[], list[int]], spare: Iterable[int], number: int) -> int:
    """One signal to every process that `find` names, twice asked; how many were named the first time.

    Between finding a pid and signalling it the process may end and its number go to a process of the host: so a
    pidfd is taken first and the process must still be found after that.
    """
    spared = set(spare)
    handles: dict[int, int] = {}
    for pid in find():
        if pid not in spared:
            try:
                handles[pid] = os.pidfd_open(pid)
            except (ProcessLookupError, OSError):
                continue
    if not handles:
        return 0
    try:
        still = set(find())
        for pid, handle in handles.items():
            if pid in still:
                try:
                    signal.pidfd_send_signal(handle, number)
                except (ProcessLookupError, PermissionError):
                    continue
    finally:
        for handle in handles.values():
            os.close(handle)
    return len(handles)


async def kill(find: Callable[[], list[int]], spare: Iterable[int] = (), within_s: float = 5.0) -> bool:
    """SIGKILL again and again until `find` names no process but the spared; False when some outlive `within_s`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while send(find, spare, signal.SIGKILL):
        if loop.time() > end:
            return False
        await asyncio.sleep(KILL_PAUSE_S)
    return True


def _oom_counter(group: Path | None) -> Counter:
    v2 = group is not None and (group / "memory.events").exists()
    name = "memory.events" if v2 else "memory.oom_control"
    return Counter("oom_kills", group / name if group else None, "oom_kill")


def _pids_counter(group: Path | None) -> Counter:
    return Counter("pids_refused", group / "pids.events" if group else None, "max")


def _counter(group: Path | None, name: str, key: str) -> int:
    """A number in a cgroup file, the one named `key` where it has several; 0 where there is none."""
    if group is None:
        return 0
    try:
        lines = (group / name).read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        found, _, value = line.rpartition(" ")
        if found == key:
            return int(value)
    return 0


def _procs(group: Path) -> list[int]:
    try:
        with open(group / "cgroup.procs", "rb", buffering=0) as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []  # the box is gone


def _move(group: Path, pid: int) -> None:
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        return  # it ended meanwhile


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]


def _pid_namespace(pid: int) -> tuple[int, int]:
    stat = os.stat(f"/proc/{pid}/ns/pid")
    return stat.st_dev, stat.st_ino


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _birth(pid: int) -> int:
    """Start time in clock ticks: with the pid it names one process for good."""
    fields = _stat(pid)
    return int(fields[19]) if fields else -1


def _alive(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
