"""This process's terminal, joined to a terminal elsewhere.

In: two descriptors of a terminal, and whoever sends a pty's master over a socket. Out: bytes both ways and the
window's size, until the other side has ended; the terminal is as it was, whatever happened. Leaves what runs there to
the caller.

    guard: the process the user started ──fork──► the one that does the work
           waits, passes signals on, and puts the terminal back at the end, also after the worker's SIGKILL
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import sys
import tempfile
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rockroll import home
from rockroll.errors import SandboxError

T = TypeVar("T")
PR_SET_PDEATHSIG = 1
READ = 1 << 16
HANGUP_S = 2.0
DRAIN_S = 1.0
"""The shell has ended: what it printed last is in the terminal already, unless a job of its own still prints."""


def guard(terminal: int) -> None:
    """Returns in a child. This process puts the terminal back when the child has ended, however, and ends as it did."""
    before = _Settings(terminal)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        return
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    before.restore()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


async def show(start: Callable[[str, int, int], Awaitable[T]], stdin: int, stdout: int) -> T:
    """Joins stdin and stdout to the pty whose master comes to a socket; returns what `start` does.

    start: given the socket's path, rows and columns; it sends the master there and returns when its shell has ended.
    """
    loop = asyncio.get_running_loop()
    with (
        tempfile.TemporaryDirectory(dir=home.runtime_dir(), prefix=f"tty-{os.getpid()}-") as folder,
        _listening(folder) as (path, door),
    ):
        loop.add_signal_handler(signal.SIGHUP, os.kill, os.getpid(), signal.SIGTERM)  # which cli/loop.py ends well
        shell = asyncio.ensure_future(start(path, *_size(stdout)))
        try:
            master = await _first(_receive(door), shell)
            if master is None:
                return shell.result()  # mostly an error: no shell could be opened
            with _raw(stdin):
                await _join(master, stdin, stdout, shell)
            await asyncio.wait([shell], timeout=HANGUP_S)
            if not shell.done():
                raise SandboxError("the terminal is closed and the shell did not end with it; it is killed")
            return shell.result()
        finally:
            shell.cancel()
            await asyncio.gather(shell, return_exceptions=True)
            loop.remove_signal_handler(signal.SIGHUP)


async def _first(work: Awaitable[int], other: asyncio.Future[Any]) -> int | None:
    """The result of `work`, or None where `other` is done before."""
    wanted = asyncio.ensure_future(work)
    try:
        await asyncio.wait([wanted, other], return_when=asyncio.FIRST_COMPLETED)
        return wanted.result() if wanted.done() else None
    finally:
        wanted.cancel()


@contextlib.contextmanager
def _listening(folder: str) -> Iterator[tuple[str, socket.socket]]:
    path = str(Path(folder, "s"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(path)
        door.listen(1)
        door.setblocking(False)
        yield path, door


async def _receive(door: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    sender, _ = await loop.sock_accept(door)
    with sender:
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(sender, lambda: readable.done() or readable.set_result(None))
        try:
            await readable
        finally:
            loop.remove_reader(sender)
        _, fds, _, _ = socket.recv_fds(sender, 4096, 1)
    if not fds:
        raise SandboxError("the container runtime sent no terminal; `rockroll doctor` says what this host lacks")
    os.set_blocking(fds[0], False)
    os.set_inheritable(fds[0], False)
    return fds[0]


class _Flow:
    """Bytes from one descriptor to another, none of them lost: while the target is full nothing is read."""

    def __init__(self, source: int, target: int, end: Callable[[], None]) -> None:
        """Both are non-blocking. end: called when either is gone."""
        self._loop = asyncio.get_running_loop()
        self._source, self._target, self._end = source, target, end
        self._waiting = bytearray()
        self._loop.add_reader(source, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._source, READ)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the other end any more
            data = b""
        if not data:
            self._loop.remove_reader(self._source)
            self._end()
            return
        self._waiting += data
        self._write()

    def _write(self) -> None:
        try:
            del self._waiting[: os.write(self._target, self._waiting)]
        except BlockingIOError:
            pass
        except OSError:
            self._waiting.clear()
            self._end()
        if self._waiting:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._write)
        else:
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._read)

    def stop(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)

    def drain(self, within_s: float) -> None:
        """After `stop`: what is there still, to a target that blocks now."""
        end = self._loop.time() + within_s
        with contextlib.suppress(OSError):  # nothing more, or one of them is gone
            while self._waiting or self._loop.time() < end:
                del self._waiting[: os.write(self._target, self._waiting or os.read(self._source, READ))]


async def _join(master: int, stdin: int, stdout: int, shell: asyncio.Future[Any]) -> None:
    """Until the shell has ended, the other side hangs up or this one has nothing more to say."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

    def resize() -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(stdout, termios.TIOCGWINSZ, bytes(8)))

    shell.add_done_callback(end)
    loop.add_signal_handler(signal.SIGWINCH, resize)
    resize()
    for fd in (stdin, stdout):
        os.set_blocking(fd, False)
    shown, typed = _Flow(master, stdout, end), _Flow(stdin, master, end)
    try:
        await over
    finally:
        shell.remove_done_callback(end)
        loop.remove_signal_handler(signal.SIGWINCH)
        typed.stop()
        shown.stop()
        os.set_blocking(stdout, True)
        if shell.done():
            shown.drain(DRAIN_S)
        os.close(master)  # a shell that still runs is hung up


class _Settings:
    """How a terminal was found."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._attributes = termios.tcgetattr(terminal)
        # Of the open file, which the user's own shell has too: left non-blocking, that shell would end at once.
        self._flags = fcntl.fcntl(terminal, fcntl.F_GETFL)

    def restore(self) -> None:
        """Nothing where the terminal is gone. SIGTTOU would stop a process in the background that does this."""
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with contextlib.suppress(OSError, termios.error):
            fcntl.fcntl(self._terminal, fcntl.F_SETFL, self._flags)
            termios.tcsetattr(self._terminal, termios.TCSANOW, self._attributes)


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    before = _Settings(terminal)
    try:
        tty.setraw(terminal, termios.TCSADRAIN)
        yield
    finally:
        before.restore()


def _size(terminal: int) -> tuple[int, int]:
    """Rows and columns; 24 and 80 where the terminal does not know."""
    found = array.array("H", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))
    return found[0] or 24, found[1] or 80
