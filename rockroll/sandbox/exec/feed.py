"""The standard input of one command under way, and the other strings it can be pulled by.

In: bytes and an end, from whoever steers the command. Out: the same bytes to the program, in order, waiting while it
does not read. Leaves which command it belongs to to commands.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from rockroll.errors import SessionError

Tap = Callable[[int, bytes], None]
"""Takes (1 for stdout, 2 for stderr; bytes that were kept)."""


class Feed:
    """One command's input: open ──► fed ──► closed (end of file), or over, when the command has ended.

    Made before the command begins; whoever starts the command gives it a descriptor or a FIFO to write to.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd: asyncio.Future[int] = self._loop.create_future()
        self._turn = asyncio.Lock()
        self._fifo: Path | None = None
        self._waiting: asyncio.Future[None] | None = None

    def through(self, fd: int) -> None:
        """Writes to this descriptor from now on, and owns it."""
        os.set_blocking(fd, False)
        if self._fd.done():
            os.close(fd)
        else:
            self._fd.set_result(fd)

    def through_fifo(self, path: Path) -> None:
        """Writes to a FIFO that the command's shell is about to open.

        A writer that closes before the reader has opened would leave the reader waiting for ever, and nothing but the
        end of a blocking open() tells that it has: so a thread opens.
        """
        self._fifo = path
        threading.Thread(target=self._open, args=(path,), name=f"feed-{path.name}", daemon=True).start()

    def _open(self, path: Path) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return  # the box is gone
        try:
            self._loop.call_soon_threadsafe(self.through, fd)
        except RuntimeError:  # the loop has been closed
            os.close(fd)

    async def write(self, data: bytes) -> None:
        """Returns once the pipe has taken it all. Raises SessionError where the command reads no more."""
        async with self._turn:
            fd = await self._open_fd()
            view = memoryview(data)
            while view:
                try:
                    view = view[os.write(fd, view) :]
                except BlockingIOError:
                    await self._writable(fd)
                    if self._fd.cancelled():
                        raise _over() from None
                except (BrokenPipeError, OSError):
                    raise SessionError("the command has closed its input: it reads no more") from None

    async def close(self) -> None:
        """The command reads end of file once it has read what was written."""
        async with self._turn:
            fd = await self._open_fd()
            self._fd = self._loop.create_future()
            self._fd.cancel()
            os.close(fd)

    def over(self) -> None:
        """The command has ended: nothing is written any more, nothing waits."""
        if self._fd.done() and not self._fd.cancelled():
            fd = self._fd.result()
            self._loop.remove_writer(fd)
            os.close(fd)
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(None)  # somebody else may hold the pipe's other end, and never read
        ended, self._fd = self._fd, self._loop.create_future()
        self._fd.cancel()
        if not ended.done():
            ended.cancel()
        if self._fifo is not None:
            # Lets the thread's open() return, in case the shell never opened its end.
            with contextlib.suppress(OSError):
                os.close(os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            self._fifo.unlink(missing_ok=True)

    async def _open_fd(self) -> int:
        try:
            return await asyncio.shield(self._fd)
        except asyncio.CancelledError:
            if self._fd.cancelled():
                raise _over() from None
            raise

    async def _writable(self, fd: int) -> None:
        ready = self._loop.create_future()
        self._loop.add_writer(fd, lambda: ready.done() or ready.set_result(None))
        self._waiting = ready
        try:
            await ready
        finally:
            if not self._fd.cancelled():
                self._loop.remove_writer(fd)


def _over() -> SessionError:
    return SessionError("the command's input is closed: it has ended, or an end of file was sent")


class Tether:
    """What ties a command under way to whoever steers it: its output as it comes, its input, signals to it."""

    def __init__(self, tap: Tap, feed: Feed | None) -> None:
        self.tap, self.feed = tap, feed
        self.send: Callable[[int], None] | None = None
        """Signals what the command has started; None while it waits for its turn and when it is over."""
