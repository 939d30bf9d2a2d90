"""The node's side of enter.py: processes inside a container without the OCI runtime, where this host allows it.

In: a running container's spec, init and cgroups. Out: what an order needs, the pid of the process that came of it, or
the step that failed. Leaves deciding between this and the runtime, and the words of errors, to oci_exec.py.

`Inside.look` answers None where the runtime must do it: without the privilege to read a seccomp program back (an
ordinary user), under AppArmor or SELinux, whose labels only the runtime sets, or on a machine that enter.py does not
know.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rockroll.errors import SandboxLost
from rockroll.sandbox.container import enter, profile
from rockroll.sandbox.linux.process import Process

NAMESPACES = {
    "user": 0x10000000,
    "mnt": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
}
INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
"""Of one user: by default 128 for root and all boxes together."""
LEAST_INOTIFY, INOTIFY_SHARE = 16, 16
"""A box may have a sixteenth of them, and this many at least."""
_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE"
    " NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN"
    " SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE"
    " MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
"""By number, from 0: linux/capability.h."""
_NUMBERS = {name: bit for bit, name in enumerate(_CAPABILITIES.split())}
PROGRAMS_KEPT = 16
"""Seccomp programs that are remembered, by the profile that they were made of: reading one takes a process."""
_KNOWN_PROCESS = {
    "terminal", "user", "args", "env", "cwd", "capabilities", "rlimits", "noNewPrivileges", "oomScoreAdj",
    "apparmorProfile", "selinuxLabel",
}  # fmt: skip


STARTS_AT_ONCE, FILES_A_START = 32, 24
"""Starts under way together, of the whole node, and the descriptors that each holds meanwhile: a cgroup's file for each
controller, a pidfd, pipes. Of a thousand shells asked for at once the others wait their turn; the helper makes them one
after the other anyhow."""


class EnterFailed(Exception):
    """A step of enter.py failed, with an errno; never leaves this room."""

    def __init__(self, step: str, code: int) -> None:
        super().__init__(f"{step}: {os.strerror(code)}")
        self.step, self.code = step, code


class Spawner:
    """enter.py as a process, started at the first order and again should it die."""

    def __init__(self) -> None:
        self._orders: socket.socket | None = None
        self._process: Process | None = None
        self._sending = asyncio.Lock()
        """An event loop tells one waiter that a socket takes more, not several."""
        self.starts = asyncio.Semaphore(STARTS_AT_ONCE)
        """Held by who starts a process, from before its pipes are opened until it runs."""
        self.programs: dict[bytes, list[str]] = {}

    def _running(self) -> socket.socket:
        if self._orders is None or self._process is None or self._process.ended.done():
            self.close()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, enter.MAX_ORDER)
                pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-I", "-S", str(Path(enter.__file__)), "3"],
                    {},  # what runs in a box is forked from it: nothing of the node's environment is there to be seen
                    file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)],
                    setsid=True,
                    setsigmask=[],
                )
            ours.setblocking(False)
            self._orders, self._process = ours, Process(pid)
        return self._orders

    async def order(self, body: dict[str, Any], fds: Sequence[int]) -> list[list[str]]:
        """Sends one order; the words of each line on its report pipe, which stands after the first `fds`'s three.

        Raises EnterFailed, also when the helper dies.
        """
        report, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(theirs, True)
            try:
                await self._send(json.dumps(body).encode(), [*fds[:3], theirs, *fds[3:]])
            finally:
                os.close(theirs)
            lines = [line.split() for line in (await _read(report)).decode().splitlines()]
        finally:
            os.close(report)
        for line in lines:
            if line[0] == "failed":
                raise EnterFailed(" ".join(line[1:-1]), int(line[-1])) from None
        if not lines:
            raise EnterFailed("the helper died", 0)
        return lines

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        if len(data) > enter.MAX_ORDER:
            raise EnterFailed("order", errno.EMSGSIZE)
        async with self._sending:
            while True:
                orders = self._running()
                try:
                    socket.send_fds(orders, [data], fds)
                    return
                except BlockingIOError:
                    writable = asyncio.Event()
                    loop.add_writer(orders, writable.set)
                    try:
                        await writable.wait()
                    finally:
                        loop.remove_writer(orders)
                except OSError as error:
                    if error.errno in (errno.EMSGSIZE, errno.ENOBUFS):  # net.core.wmem_max caps what the socket takes
                        raise EnterFailed("order", error.errno) from None
                    if not isinstance(error, BrokenPipeError | ConnectionResetError):
                        raise
                    if self._process is not None:
                        await asyncio.shield(self._process.ended)  # then a new one is started

    def close(self) -> None:
        """The helper ends at the end of its orders."""
        if self._orders is not None:
            self._orders.close()
            self._orders = None


@dataclass(frozen=True)
class Inside:
    """What an order needs to know of one running container."""

    init: int
    fixed: Mapping[str, Any]
    """The parts of an order that are the same for every process of this container."""
    groups: Mapping[str, Path]
    """Controller → cgroup."""

    @classmethod
    async def look(cls, spawner: Spawner, init: int, process: Mapping[str, Any], seccomp: bytes) -> Inside | None:
        """Reads the container's spec and its init. None where only the runtime can start processes in it.

        seccomp: the profile in its spec. What the kernel made of it is read from the first init that has it.
        """
        if process.get("apparmorProfile") or process.get("selinuxLabel") or set(process) - _KNOWN_PROCESS:
            return None
        if os.uname().machine not in enter.SYS_CAPSET or os.getuid() != 0:
            return None
        try:
            programs = spawner.programs.get(seccomp) or await _seccomp(spawner, init)
        except EnterFailed:
            return None
        if len(spawner.programs) < PROGRAMS_KEPT:
            spawner.programs[seccomp] = programs
        user = process["user"]
        fixed = {
            "namespaces": _namespaces(init),
            "oom_score_adj": process.get("oomScoreAdj"),
            "rlimits": [
                (getattr(resource, limit["type"]), limit["soft"], limit["hard"]) for limit in process.get("rlimits", [])
            ],
            "capabilities": [
                _bits(process.get("capabilities", {}).get(kind, []))
                for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")
            ],
            "uid": user["uid"],
            "gid": user["gid"],
            "groups": user.get("additionalGids", []),
            "umask": user.get("umask", 0o022),
            "no_new_privileges": bool(process.get("noNewPrivileges")),
            "seccomp": programs,
        }
        return cls(init, fixed, profile.cgroups(init))

    async def spawn(
        self,
        spawner: Spawner,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        streams: tuple[int, int, int],
        group: tuple[str, Path] | None,
    ) -> int:
        """The host's pid of the new process, which execs argv or has failed: then EnterFailed. SandboxLost. The caller
        holds one of `spawner.starts`.

        group: (controller, cgroup) to be in, in place of the container's own one.
        """
        order = {**self.fixed, "argv": list(argv), "env": dict(env), "cwd": cwd}
        with contextlib.ExitStack() as stack:
            try:
                fds = [*streams, os.pidfd_open(self.init)]
                stack.callback(os.close, fds[3])
                for path in self._joined(group):
                    fds.append(os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
                    stack.callback(os.close, fds[-1])
            except (FileNotFoundError, ProcessLookupError):
                raise SandboxLost("the sandbox is not running: no process can be started in it") from None
            lines = await spawner.order(order, fds)
        for word, *rest in lines:
            if word == "pid":
                return int(rest[0])
        raise EnterFailed("killed", 0)  # for memory, in the box's own cgroup

    def _joined(self, group: tuple[str, Path] | None) -> Iterator[Path]:
        if group and group[0] == "unified":  # cgroup v2: there is but one
            yield group[1]
            return
        chosen = {**self.groups, **dict([group] if group else [])}
        yield from dict.fromkeys(chosen.values())


async def limit_counters(spawner: Spawner, init: int) -> None:
    """Caps what the kernel counts for the user who made the box's user namespace, all boxes and root together, so that
    one box cannot use it up for all. Nothing for a box without one of its own. SandboxLost; EnterFailed.
    """
    if not _namespaces(init) & NAMESPACES["user"] or os.getuid() != 0:
        return
    most = int(INOTIFY_INSTANCES.read_text())
    counters = {"max_inotify_instances": max(LEAST_INOTIFY, most // INOTIFY_SHARE), "max_user_namespaces": 0}
    try:
        pidfd = os.pidfd_open(init)
    except ProcessLookupError:
        raise SandboxLost("the sandbox ended while it was being started") from None
    try:
        await spawner.order({"counters": counters}, [pidfd])
    finally:
        os.close(pidfd)


async def _seccomp(spawner: Spawner, init: int) -> list[str]:
    """Programs in the order in which to load them: the oldest first."""
    status = Path(f"/proc/{init}/status").read_text()
    if "\nSeccomp:\t0\n" in status:
        return []
    lines = await spawner.order({"seccomp_of": init}, [])
    programs = [line[1] for line in lines if line[0] == "program"]
    if not programs or lines[-1] != ["done"]:
        raise EnterFailed("seccomp", 0)
    return programs[::-1]


def _namespaces(init: int) -> int:
    flags = 0
    for name, flag in NAMESPACES.items():
        theirs, ours = os.stat(f"/proc/{init}/ns/{name}"), os.stat(f"/proc/self/ns/{name}")
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            flags |= flag
    return flags


def _bits(names: Sequence[str]) -> int:
    return sum(1 << _NUMBERS[name.removeprefix("CAP_")] for name in names)


async def _read(fd: int) -> bytes:
    """Everything up to the end of file."""
    loop = asyncio.get_running_loop()
    parts: list[bytes] = []
    over = loop.create_future()

    def on_data() -> None:
        try:
            data = os.read(fd, 1 << 18)
        except BlockingIOError:
            return
        if data:
            parts.append(data)
        elif not over.done():
            over.set_result(None)

    loop.add_reader(fd, on_data)
    try:
        await over
    finally:
        loop.remove_reader(fd)
    return b"".join(parts)
