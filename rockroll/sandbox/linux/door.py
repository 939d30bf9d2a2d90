"""A unix socket to which the container runtime sends a terminal's master (SCM_RIGHTS).

In: a folder. Out: a listening socket with its path, and the descriptor that came. Leaves its bytes to whoever asked for
the terminal: cli/console.py on the sandbox's own host, exec/far_terminal.py for a caller on another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

from rockroll.errors import SandboxError


@contextlib.contextmanager
def listening(folder: str) -> Iterator[tuple[str, socket.socket]]:
    path = str(Path(folder, "s"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(path)
        door.listen(1)
        door.setblocking(False)
        yield path, door


async def master(door: socket.socket, shell: asyncio.Future[Any]) -> int | None:
    """The master, non-blocking; None where `shell` is done before, mostly with an error: none could be opened."""
    wanted = asyncio.ensure_future(_received(door))
    try:
        await asyncio.wait([wanted, shell], return_when=asyncio.FIRST_COMPLETED)
        return wanted.result() if wanted.done() else None
    finally:
        wanted.cancel()


async def _received(door: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    sender, _ = await loop.sock_accept(door)
    with sender:
        await ready(sender.fileno(), loop.add_reader, loop.remove_reader)
        _, fds, _, _ = socket.recv_fds(sender, 4096, 1)
    if not fds:
        raise SandboxError("the container runtime sent no terminal; `rockroll doctor` says what this host lacks")
    os.set_blocking(fds[0], False)
    os.set_inheritable(fds[0], False)
    return fds[0]


async def ready(fd: int, add: Any, remove: Any) -> None:
    """Until the descriptor can be read, or written. add, remove: the loop's for readers, or for writers."""
    able: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(fd, lambda: able.done() or able.set_result(None))
    try:
        await able
    finally:
        remove(fd)


async def either(*awaited: Awaitable[Any]) -> None:
    """Until one of them is done; coroutines among them that are not are cancelled, futures go on."""
    tasks = [each if isinstance(each, asyncio.Future) else asyncio.ensure_future(each) for each in awaited]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task, each in zip(tasks, awaited, strict=True):
            if task is not each:
                task.cancel()
