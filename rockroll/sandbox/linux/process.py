"""A process that this one waits for: by pid and pidfd, so that it is never mistaken for another.

In: a pid. Out: its end as a future, with the true wait status where it is a child; signals that reach it or nobody.
Leaves orphans that nobody waits for to reaper.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from pathlib import Path

from rockroll.errors import HostError

PR_SET_CHILD_SUBREAPER = 36


def become_subreaper(on: bool = True) -> None:
    """Makes orphans of this process's descendants its children, or no longer. HostError where the kernel refuses."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) != 0:
        raise HostError(f"this process cannot become a child subreaper: {os.strerror(ctypes.get_errno())}")


def birth(pid: int) -> int:
    """Start time in clock ticks since boot: with the pid it names one process for good. 0 where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])


def _parent_handle(pid: int) -> int | None:
    """A pidfd of its parent; None where that is this process by now, or where `pid` itself is gone."""
    while True:
        try:
            if (parent := _parent(pid)) == os.getpid():
                return None
            handle = os.pidfd_open(parent)
        except FileNotFoundError:
            return None
        except ProcessLookupError:
            continue  # the parent ended between the two: its children have been passed on
        with contextlib.suppress(OSError):
            if _parent(pid) == parent:  # else the number might be another process's by now
                return handle
        os.close(handle)


class Process:
    """A child of this process, known by pid and pidfd. `ended` becomes its wait status: >= 0 code, < 0 -signal.

    None where it was not our child and only its end is known.
    """

    def __init__(self, pid: int, *, orphan: bool = False) -> None:
        """orphan: its parent is about to end, and this process, a subreaper, then its parent."""
        self.pid, self._orphan = pid, orphan
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int | None] = self._loop.create_future()
        self._fd = os.pidfd_open(pid)
        self._loop.add_reader(self._fd, self._reap)

    def send(self, number: int) -> None:
        """A signal; nothing when it has ended."""
        if self._fd >= 0:
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                return

    def _reap(self) -> None:
        status: int | None = None
        try:
            found = os.waitid(os.P_PIDFD, self._fd, os.WEXITED)
            if found is not None:
                status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        except ChildProcessError:
            if self._orphan:
                return self._reap_later()
        self.forget()
        if not self.ended.done():
            self.ended.set_result(status)

    def _reap_later(self) -> None:
        """It was quicker to end than its parent. The parent's pidfd tells when its children have been passed on."""
        self._orphan = False
        self._loop.remove_reader(self._fd)
        parent = _parent_handle(self.pid)
        if parent is None:  # the parent has ended meanwhile
            return self._reap()

        def passed_on() -> None:
            self._loop.remove_reader(parent)
            os.close(parent)
            if self._fd >= 0:
                self._reap()

        self._loop.add_reader(parent, passed_on)

    def forget(self) -> None:
        """Stops watching."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
