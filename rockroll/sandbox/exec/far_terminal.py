"""A shell on a terminal in a box, for a caller on another host: `rockroll debug` through a cluster.

In: what opens a shell whose terminal's master goes to a socket (terminal.py); keys and window sizes as parts of a call.
Out: what the terminal prints, piece by piece, and how its shell ended. Leaves showing it to cli/console.py over there.

    opened ──► b"" ──► pieces … ──┬─ the shell ends ──► what is left, then its end
                                  └─ no more keys, or the caller is gone: the master is closed, the shell hung up

A piece is read when the caller is near to taking it: a flood waits in the terminal, and stops what prints it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import tempfile
import termios
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from rockroll import home
from rockroll.sandbox.linux import door
from rockroll.sandbox.wire import Terminal, TerminalEnd, TerminalInput, TerminalOutput

READ = 1 << 16
DRAIN_S = 1.0
"""The shell has ended: what it printed last is in the terminal already, unless a job of its own still prints."""


async def carry(
    body: Terminal, keys: AsyncIterator[TerminalInput], run: Callable[[Terminal], Awaitable[TerminalEnd]]
) -> AsyncIterator[TerminalOutput]:
    """run: until its shell has ended; cancelled, it hangs the shell up. Raises what it raises."""
    with (
        tempfile.TemporaryDirectory(dir=home.runtime_dir(), prefix=f"tty-{os.getpid()}-") as folder,
        door.listening(folder) as (path, listening),
    ):
        shell = asyncio.ensure_future(run(msgspec.structs.replace(body, console=path)))
        typing: asyncio.Future[None] | None = None
        master: int | None = None
        try:
            master = await door.master(listening, shell)
            if master is not None:
                yield TerminalOutput()
                typing = asyncio.ensure_future(_type(keys, master))
                async for data in _printed(master, shell, typing):
                    yield TerminalOutput(data=data)
                typing.cancel()
                await asyncio.wait((typing,))
                os.close(master)  # a shell that still runs is hung up
                master = None
            yield TerminalOutput(end=await shell)
        finally:
            for each in (typing, shell):
                if each is not None:
                    each.cancel()
                    await asyncio.gather(each, return_exceptions=True)
            if master is not None:
                os.close(master)


async def _printed(
    master: int, shell: asyncio.Future[TerminalEnd], typing: asyncio.Future[None]
) -> AsyncIterator[bytes]:
    """Until nobody has the terminal's other end, the shell has ended, or nothing more will be typed."""
    loop = asyncio.get_running_loop()
    until: float | None = None
    while until is None or loop.time() < until:
        try:
            data = os.read(master, READ)
        except BlockingIOError:
            if shell.done() or typing.done():
                return
            await door.either(door.ready(master, loop.add_reader, loop.remove_reader), shell, typing)
            continue
        except OSError:  # EIO: nobody has the other end any more
            return
        if not data:
            return
        yield data
        if shell.done() and until is None:
            until = loop.time() + DRAIN_S


async def _type(keys: AsyncIterator[TerminalInput], master: int) -> None:
    """Until the caller has no more to say, or the terminal is gone."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        async for each in keys:
            if each.rows and each.columns:
                fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", each.rows, each.columns, 0, 0))
            waiting = each.data
            while waiting:
                try:
                    waiting = waiting[os.write(master, waiting) :]
                except BlockingIOError:
                    await door.ready(master, loop.add_writer, loop.remove_writer)
