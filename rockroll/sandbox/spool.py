"""The log of one sandbox: everything its sessions and executes printed, in the order in which it came.

In: bytes. Out: a file that is read by offset, from several readers at once, and followed. Bounded: past `limit` it
says so once and keeps the beginning. Leaves who printed what to the headers that the writers put in.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

CHUNK = 64 * 1024
LIMIT = 64 * 2**20


class Spool:
    """An append-only file with followers. It outlives its readers; `reset` empties it for the box's next use."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._limit = limit
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        self._followers: set[asyncio.Future[None]] = set()

    def write(self, data: bytes) -> None:
        """Appends; nothing once it is full or closed."""
        if self._fd < 0 or self.size >= self._limit or not data:
            return
        if self.size + len(data) > self._limit:
            note = f"\n[rockroll: the log is full at {self._limit} bytes; later output is not kept]\n".encode()
            data = data[: max(0, self._limit - self.size)] + note
        self.size += os.pwrite(self._fd, data, self.size)
        self._wake()

    def read(self, offset: int, size: int = CHUNK) -> bytes:
        """At most `size` bytes from offset; b"" at the end."""
        return os.pread(self._fd, size, offset) if self._fd >= 0 else b""

    async def follow(self, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """(offset, bytes) as they come, until the spool is closed. A reset goes on from its new beginning."""
        while self._fd >= 0:
            offset = min(offset, self.size)
            if data := self.read(offset):
                yield offset, data
                offset += len(data)
                continue
            more = asyncio.get_running_loop().create_future()
            self._followers.add(more)
            try:
                await more
            finally:
                self._followers.discard(more)

    def reset(self) -> None:
        """Empties it: the box's next user must not see what the last one printed."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            self.size = 0
            self._wake()

    def close(self, *, remove: bool) -> None:
        """Ends every follower."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if remove:
            self.path.unlink(missing_ok=True)
        self._wake()

    def _wake(self) -> None:
        for follower in self._followers:
            if not follower.done():
                follower.set_result(None)
