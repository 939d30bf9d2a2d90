"""This process's terminal, joined to a terminal elsewhere.

In: two descriptors of a terminal, and whoever sends a pty's master over a socket, or its bytes in a stream. Out: bytes
both ways and the window's size, until the other side has ended; the terminal is as it was, whatever happened. Leaves
what runs there to the caller.

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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

from rockroll import home
from rockroll.errors import SandboxError
from rockroll.sandbox.linux import door
from rockroll.sandbox.wire import TerminalEnd, TerminalInput, TerminalOutput

T = TypeVar("T")
PR_SET_PDEATHSIG = 1
READ = 1 << 16
KEYS = 16
"""Pieces of what was typed that wait for a slow connection; more waits in the terminal."""
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
        door.listening(folder) as (path, listening),
    ):
        loop.add_signal_handler(signal.SIGHUP, os.kill, os.getpid(), signal.SIGTERM)  # which cli/loop.py ends well
        shell = asyncio.ensure_future(start(path, *_size(stdout)))
        try:
            master = await door.master(listening, shell)
            if master is None:
                return shell.result()  # mostly an error: no shell could be opened
            with _raw(stdin):
                await _join(master, stdin, stdout, shell, lambda: _resize(master, stdout))
            return await _ended(shell)
        finally:
            shell.cancel()
            await asyncio.gather(shell, return_exceptions=True)
            loop.remove_signal_handler(signal.SIGHUP)


async def show_far(
    start: Callable[[int, int, AsyncIterator[TerminalInput]], AsyncGenerator[TerminalOutput, None]],
    stdin: int,
    stdout: int,
) -> TerminalEnd:
    """As show, with a pty on another host. start: given rows, columns and what is typed; it yields what is shown."""
    loop = asyncio.get_running_loop()
    said: asyncio.Queue[TerminalInput | None] = asyncio.Queue(KEYS)

    async def keys() -> AsyncIterator[TerminalInput]:
        while (each := await said.get()) is not None:
            yield each

    def resized() -> None:
        with contextlib.suppress(OSError, asyncio.QueueFull):  # a window's size may be missed; the next one tells it
            rows, columns = _size(stdout)
            said.put_nowait(TerminalInput(rows=rows, columns=columns))

    loop.add_signal_handler(signal.SIGHUP, os.kill, os.getpid(), signal.SIGTERM)
    opened: asyncio.Future[None] = loop.create_future()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    shell = asyncio.ensure_future(_carry(start(*_size(stdout), keys()), theirs, said, opened))
    try:
        await asyncio.wait([opened, shell], return_when=asyncio.FIRST_COMPLETED)
        if shell.done():
            return shell.result()
        with _raw(stdin):
            await _join(ours.detach(), stdin, stdout, shell, resized)
        return await _ended(shell)
    finally:
        shell.cancel()
        await asyncio.gather(shell, return_exceptions=True)
        ours.close()
        theirs.close()
        loop.remove_signal_handler(signal.SIGHUP)


async def _ended(shell: asyncio.Future[T]) -> T:
    """What it came to, now that nobody looks at it any more."""
    await asyncio.wait([shell], timeout=HANGUP_S)
    if not shell.done():
        raise SandboxError("the terminal is closed and the shell did not end with it; it is killed")
    return shell.result()


async def _carry(
    shown: AsyncGenerator[TerminalOutput, None],
    sock: socket.socket,
    said: asyncio.Queue[TerminalInput | None],
    opened: asyncio.Future[None],
) -> TerminalEnd:
    """Between a socket and a call, until the shell at the call's other end has ended. What it printed is in the socket
    by then."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    writer.transport.set_write_buffer_limits(high=0)  # so that `drain` waits for all of it

    async def typed() -> None:
        while data := await reader.read(READ):
            await said.put(TerminalInput(data=data))
        await said.put(None)

    typing = asyncio.ensure_future(typed())
    try:
        async with contextlib.aclosing(shown):
            async for each in shown:
                if each.end is not None:
                    return each.end
                if not opened.done():
                    opened.set_result(None)
                with contextlib.suppress(ConnectionError):  # the terminal is closed; the end is still to come
                    writer.write(each.data)
                    await writer.drain()
        raise SandboxError("the shell's connection ended before the shell did")
    finally:
        typing.cancel()
        await asyncio.gather(typing, return_exceptions=True)
        writer.transport.abort()


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


async def _join(master: int, stdin: int, stdout: int, shell: asyncio.Future[Any], resize: Callable[[], None]) -> None:
    """Until the shell has ended, the other side hangs up or this one has nothing more to say. resize: the window has
    another size; once at first."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end(_: object = None) -> None:
        if not over.done():
            over.set_result(None)

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


def _resize(master: int, stdout: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(stdout, termios.TIOCGWINSZ, bytes(8)))


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
