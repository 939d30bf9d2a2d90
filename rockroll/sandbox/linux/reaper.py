"""The end of orphans that nobody else waits for.

In: that this process is a child subreaper. Out: no zombie of it stays. Leaves the children that somebody does wait for
(oci_exec.Process, asyncio, subprocess) to their waiters, which take them long before GRACE_S is over.

Why it must be: a runtime or conmon that is killed half-way leaves children, and the kernel holds up the end of a pid
namespace until every process that entered it from outside has been waited for. One zombie, and a box's init cannot die.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

GRACE_S = 0.25


class Reaper:
    """`start` once there is a child; `close` at the end.

    A thread waits for any child's death without taking it (uvloop keeps SIGCHLD to itself); the loop looks then, twice.
    """

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}
        """Zombies, and when they were first looked at."""
        self._timer: asyncio.TimerHandle | None = None
        self._looked = threading.Event()
        self._made = threading.Event()
        """A child has been made since there was none."""
        self._closed = False

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        _waiting.add(self._made)
        threading.Thread(target=self._watch, args=(loop,), name="reaper", daemon=True).start()

    def close(self) -> None:
        self._closed = True
        _waiting.discard(self._made)
        self._looked.set()
        self._made.set()
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._closed:
            self._made.clear()  # before the look: what is made from here on either shows there or wakes this thread
            if self._closed:
                return
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                self._made.wait()  # not even Podman's service: it died, or the host is closing
                continue
            self._looked.clear()
            try:
                loop.call_soon_threadsafe(self._soon)
            except RuntimeError:
                return  # the loop has closed
            self._looked.wait()

    def _soon(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(GRACE_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        zombies = set(_zombies())
        self._seen = {pid: self._seen.get(pid, now) for pid in zombies}
        oldest_start = min(_starting.values(), default=now)
        for pid, seen in list(self._seen.items()):
            if now - seen >= GRACE_S and seen < oldest_start:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
                del self._seen[pid]
        if self._seen:
            self._soon()
        else:
            self._looked.set()


_waiting: set[threading.Event] = set()
"""Of reapers that may have no child to wait for."""
_starting: dict[object, float] = {}
"""Starts under way, and since when: a zombie first seen after one began may be what it started, and is its to take."""


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Around a start, until what was started is waited for."""
    key = object()
    _starting[key] = asyncio.get_running_loop().time()
    try:
        yield
    finally:
        del _starting[key]
        for made in _waiting:
            made.set()


def _zombies() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:  # a thread that has ended
            continue
        for child in children:
            try:
                state = Path(f"/proc/{child}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state == "Z":
                yield int(child)
