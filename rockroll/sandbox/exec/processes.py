"""The processes of one box, as it numbers them itself, and a signal to exactly one of them.

In: the host's pids of a box, its init. Out: a row each (wire.ProcessInfo); a signal that reaches the process meant or
nobody. Leaves which pids those are to cgroup.py. All of it blocks: call it from a thread.

A process is named by its pid in the box and its birth (start time in clock ticks since boot): a pid alone is used
again.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from rockroll.errors import FileError, SandboxError, SandboxLost, UsageError
from rockroll.sandbox.fs import files
from rockroll.sandbox.wire import ProcessInfo

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_UID = re.compile("[0-9]{1,10}")
COMMAND_BYTES = 4096
"""Of a command line, which may be as long as the stack."""


def listed(init: int, pids: Iterable[int], sessions: Mapping[str, Collection[int]]) -> list[ProcessInfo]:
    """One row each, by pid, init first. sessions: name → the host's pids that belong to it. Who ends meanwhile is not
    in it."""
    owner = {pid: name for name, members in sessions.items() for pid in members}
    inside = {pid: number for pid in (init, *pids) if (number := _inside(pid))}
    users = _Users(init)
    rows = []
    for pid, number in inside.items():
        with contextlib.suppress(OSError, ValueError):
            rows.append(_row(pid, number, inside, users, owner.get(pid)))
    return sorted(rows, key=lambda row: row.pid)


def _row(pid: int, number: int, inside: Mapping[int, int], users: _Users, session: str | None) -> ProcessInfo:
    stat = _stat(pid)
    folder = Path(f"/proc/{pid}")
    with open(folder / "cmdline", "rb") as file:
        words = file.read(COMMAND_BYTES).rstrip(b"\0").replace(b"\0", b" ")
    command = words.decode("utf-8", "replace") or f"[{(folder / 'comm').read_text(errors='replace').strip()}]"
    return ProcessInfo(
        pid=number,
        parent=inside.get(int(stat[1]), 0),
        user=users.name(_uid(pid)),
        command=command,
        state=stat[0],
        cpu_s=(int(stat[11]) + int(stat[12])) / _TICKS,
        memory_bytes=int(stat[21]) * _PAGE,
        session=session,
        birth=int(stat[19]),
    )


def send(find: Callable[[], list[int]], pid: int, number: int, birth: int = 0) -> None:
    """A signal to the box's process `pid`, numbered as the box does; to no other, whatever ends and starts meanwhile.

    find: the host's pids of the box but init. birth: of the process meant; 0: whoever has that pid now. SandboxError
    where there is none.
    """
    if pid == 1:
        raise UsageError(
            "process 1 is the sandbox's init, whose end is the sandbox's; stop or delete the sandbox instead"
        )
    gone = SandboxError(f"no process {pid} in this sandbox; `rockroll sandbox ps` lists those there are")
    for host in find():
        if _inside(host) != pid:
            continue
        try:
            born = int(_stat(host)[19])
            handle = os.pidfd_open(host)
        except OSError:
            raise gone from None
        try:
            # Between finding the pid and opening the handle the number may have gone to a process of the host's.
            stat = _stat(host)
            if _inside(host) != pid or int(stat[19]) != born or stat[0] in "ZX" or host not in find():
                raise gone
            if birth and birth != born:
                raise SandboxError(f"process {pid} has ended and its number is another's now; nothing was sent")
            signal.pidfd_send_signal(handle, number)
        except (OSError, IndexError):
            raise gone from None
        finally:
            os.close(handle)
        return
    raise gone


class _Users:
    """Names of the box's users, as its own /etc/passwd says; a number where it says nothing."""

    def __init__(self, init: int) -> None:
        try:
            rows = [line.split() for line in Path(f"/proc/{init}/uid_map").read_text().splitlines()]
        except OSError:
            raise SandboxLost("the sandbox is not running") from None
        self._ranges = [(int(first), int(there), int(count)) for first, there, count in rows]
        self._names: dict[int, str] = {}
        with contextlib.suppress(FileError):
            text = files.read(init, "/etc/passwd", 0, 1 << 20).data.decode("utf-8", "replace")
            for line in text.splitlines():
                name, _, rest = line.partition(":")
                number = rest.split(":")[1:2]
                # Digits of ASCII: int() takes neither "²", which isdigit() does, nor thousands of digits.
                if number and _UID.fullmatch(number[0]):
                    self._names.setdefault(int(number[0]), name)

    def name(self, uid: int) -> str:
        for first, there, count in self._ranges:
            if there <= uid < there + count:
                uid = first + uid - there
                break
        return self._names.get(uid, str(uid))


def _inside(pid: int) -> int:
    """The pid as the innermost namespace numbers it; 0 for a process that is gone."""
    for line in _status(pid):
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return 0


def _uid(pid: int) -> int:
    for line in _status(pid):
        if line.startswith("Uid:"):
            return int(line.split()[2])
    raise ProcessLookupError


def _status(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on. OSError when it is gone."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
