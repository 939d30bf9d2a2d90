"""The first process of one box, and conmon, which waits for it.

In: their pids, as Podman gives them. Out: whether init lives, is dying, has ended and how. Leaves what that means for
the box to life.py.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from rockroll.errors import SandboxLost
from rockroll.sandbox.container import freezer
from rockroll.sandbox.linux.process import Process

PF_EXITING = 0x4
CONMON_S = 10.0
"""Conmon ends some 0.1 s after the box's init; longer than this it hangs, and Podman is asked all the same."""


class Init:
    """Of one box, through all its starts: `watch` after each, `forget` at the end."""

    def __init__(self, on_end: Callable[[asyncio.Future[int | None]], None]) -> None:
        """on_end: called with its wait status, if anybody could wait for it."""
        self.pid = 0
        self.process: Process | None = None
        self.conmon: Process | None = None
        self._on_end = on_end

    def watch(self, pid: int, conmon: int) -> None:
        """Raises SandboxLost where it has ended already."""
        self.pid = pid
        if self.process:
            self.process.forget()
        try:
            self.process = Process(pid)
        except ProcessLookupError:
            raise SandboxLost("the sandbox's init ended at its start") from None
        self.process.ended.add_done_callback(self._on_end)
        # Conmon is an orphan of Podman's, so this subreaper's child: unless somebody waits for it, it stays a zombie.
        if conmon:
            try:
                self.conmon = Process(conmon)  # watched until its end, which comes after the box's
            except ProcessLookupError:
                self.conmon = None

    def lives(self) -> bool:
        return self.process is not None and not self.process.ended.done()

    def dying(self) -> bool:
        """Dead or about to be. It dies first and last: the kernel kills all others before its death shows on the
        pidfd."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return True
        return bool(int(fields[6]) & PF_EXITING)

    async def end(self, within_s: float) -> None:
        """Returns once it has ended, or after this time."""
        if self.process:
            await asyncio.wait([self.process.ended], timeout=within_s)

    async def conmons_end(self) -> None:
        """Returns once conmon has told Podman how init ended, or cannot any more."""
        if self.conmon:
            await asyncio.wait([self.conmon.ended], timeout=CONMON_S)

    async def kill(self) -> None:
        """It has ended when this returns; nothing where there is none."""
        if self.process and self.lives():
            freezer.thaw(self.pid)  # on cgroup v1 what is frozen does not die
            self.process.send(signal.SIGKILL)
            await asyncio.shield(self.process.ended)

    def forget(self) -> None:
        """Whether it lives or not, nobody here waits for it any more."""
        if self.process:
            self.process.forget()
