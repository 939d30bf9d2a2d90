"""Signals to what a shell is about to start: Ctrl-C for what it has forked and what is not its program yet, and any
other for what it has not forked yet.

In: the shell, and the processes of its command. Out: one more SIGINT for each that was still a copy of the shell when
the first came, as soon as it is its program. Leaves the first one to session.py.

Between fork and exec a child of bash has bash's own handler, which takes the signal, and exec forgets it: the program
runs on, and bash, whose child did not die of SIGINT, goes on with the line. At a terminal that is rare. A caller that
answers a command's first output by an interrupt would see it in one of some twenty. Another signal in that moment finds
no process at all, and would be lost as well: it is for what comes next.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator

LOOK_S = (0.002, 0.008, 0.03, 0.1, 0.3)
"""Seconds between one look and the next: exec comes within a millisecond where the machine is idle."""


class LateInterrupt:
    """Made before the first SIGINT is sent; `follow` after it. Belongs to one event loop."""

    def __init__(self, shell: int, started: Iterable[int]) -> None:
        self._copies: dict[int, int] = {}
        """pid → pidfd of those that the shell has forked and that have become nothing else yet."""
        self._looks = iter(LOOK_S)
        self._shell = _arguments(shell)
        for pid in started:
            if pid != shell and self._shell and _arguments(pid) == self._shell:
                with contextlib.suppress(OSError):
                    self._copies[pid] = os.pidfd_open(pid)

    def follow(self) -> None:
        """Looks a few times, then lets go: a subshell stays a copy, and has had its SIGINT."""
        delay = next(self._looks, None)
        if self._copies and delay is not None:
            asyncio.get_running_loop().call_later(delay, self._look)
            return
        for pidfd in self._copies.values():
            os.close(pidfd)
        self._copies.clear()

    def _look(self) -> None:
        for pid, pidfd in list(self._copies.items()):
            if _arguments(pid) != self._shell:
                with contextlib.suppress(OSError):  # it has ended
                    signal.pidfd_send_signal(pidfd, signal.SIGINT)
                os.close(pidfd)
                del self._copies[pid]
        self.follow()


def send_late(send: Callable[[], int], over: Callable[[], bool], looks: Iterator[float] | None = None) -> None:
    """Now, and where that met no process, again at the next looks until it meets one, or the command is over.

    send: returns how many processes it found.
    """
    looks = iter(LOOK_S) if looks is None else looks
    if not over() and not send() and (delay := next(looks, None)) is not None:
        asyncio.get_running_loop().call_later(delay, send_late, send, over, looks)


def _arguments(pid: int) -> bytes:
    """b"" for one that has ended, or that this user may not look at."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
