"""What the commands of one shell print on one stream: stdout or stderr, a FIFO for each, used again where it can be.

In: the FIFO's bytes. Out: each byte once, to the sink of the command that printed it, or to the log where a background
job did. Leaves when a command begins and ends to shell.py.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import termios
from collections.abc import Callable
from pathlib import Path

from rockroll.sandbox.exec.place import Place, fifo

READ = 1 << 18
"""Bytes taken at once: more than a pipe holds."""

Sink = Callable[[bytes], None]


def pump(fd: int, sink: Sink) -> bool:
    """What a reader is called for goes to the sink. False at the end: its last writer has closed it."""
    try:
        data = os.read(fd, READ)
    except BlockingIOError:
        return True
    if data:
        sink(data)
    return bool(data)


def take(fd: int, sink: Sink) -> None:
    """What is in the pipe now goes to the sink, and nothing that comes meanwhile."""
    waiting = _waiting(fd)
    while waiting > 0:
        try:
            data = os.read(fd, min(waiting, READ))
        except BlockingIOError:
            return  # somebody in the box has read it meanwhile
        if not data:
            return
        waiting -= len(data)
        sink(data)


def _waiting(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


class Stream:
    """A data FIFO's reading end: stdout or stderr of the commands of one shell, one after the other."""

    def __init__(self, place: Place, name: str, uid: int, background: Sink) -> None:
        self._place, self._name, self._uid, self._background = place, name, uid, background
        self._loop = asyncio.get_running_loop()
        self._turn = 0
        self._fd = -1
        self._watched = False
        self._old: dict[int, Path] = {}
        self.sink: Sink = background
        self._renew()

    def _renew(self) -> None:
        self._turn += 1
        self._file = self._place.host / f"{self._name}{self._turn}"
        self.path = f"{self._place.inside}/{self._name}{self._turn}"
        """As the shell opens it."""
        # Write access for every user of the box: /dev/stdout must work after `su`. It is listed for none but root.
        fifo(self._file, self._uid, 0o622)
        self._fd = os.open(self._file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self) -> None:
        """Reads as it comes, from now to the report."""
        # A FIFO whose last writer is gone is at its end until opened afresh; the old end stays open until then, for
        # with no end open at all the bytes in it would be lost.
        fresh = os.open(self._file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.close(self._fd)
        self._fd = fresh
        self._loop.add_reader(fresh, self._on_data)
        self._watched = True

    def _on_data(self) -> None:
        if not pump(self._fd, self.sink):  # the command will report in a moment: no more to see, and no busy loop
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watched:
            self._loop.remove_reader(self._fd)
            self._watched = False

    def finish(self) -> None:
        """At the report: takes what is in the pipe, and leaves the pipe to a background job that holds it."""
        late: bytes | None = b""
        try:
            if data := os.read(self._fd, READ):
                self.sink(data)
                if len(data) == READ:  # somebody has made the pipe larger
                    take(self._fd, self.sink)
                late = os.read(self._fd, READ)
        except BlockingIOError:
            late = None
        if late == b"":
            self._unwatch()
        else:
            self._hand_over(late or b"")
        self.sink = self._background

    def _hand_over(self, late: bytes) -> None:
        """A job of the finished command goes on writing: into the log, through the pipe that it has."""
        self._background(late)
        fd = self._fd
        self._unwatch()
        self._old[fd] = self._file
        self._loop.add_reader(fd, self._on_background, fd)
        self._renew()

    def _on_background(self, fd: int) -> None:
        if not pump(fd, self._background):
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        os.close(fd)
        self._old.pop(fd).unlink(missing_ok=True)

    def drain(self) -> None:
        """What is left when the shell has died."""
        take(self._fd, self.sink)
        self._unwatch()

    def close(self) -> None:
        self._unwatch()
        os.close(self._fd)
        self._fd = -1
        for fd in list(self._old):
            self._drop(fd)
