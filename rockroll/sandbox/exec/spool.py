"""The log of one sandbox: everything its sessions and executes printed, in the order in which it came.

In: bytes. Out: a file that is read by offset, from several readers at once, and followed. Bounded: past `limit` bytes
on disk the oldest half is given back; offsets stay what they were. Leaves who printed what to the headers that the
writers put in.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import AsyncIterator
from pathlib import Path

from rockroll.sandbox.linux.followers import Followers
from rockroll.sandbox.linux.kept import KeptFile

CHUNK = 64 * 1024
LIMIT = 64 * 2**20
BLOCK = 4096
PUNCH_HOLE, KEEP_SIZE = 0x02, 0x01
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Spool:
    """An append-only file with followers. It outlives its readers; `reset` empties it for the box's next use."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self.path = path
        self._file = KeptFile(path, os.O_RDWR | os.O_CREAT)
        self._limit = limit
        self.size = os.lseek(self._file.fd(), 0, os.SEEK_END)
        """Bytes ever written: the offset of the next."""
        self.start = os.lseek(self._file.fd(), 0, os.SEEK_DATA) if self.size else 0
        """The offset of the oldest byte that is kept."""
        self._followers = Followers()

    def write(self, data: bytes) -> None:
        """Appends; nothing once it is closed, and nothing that a full disk of the host does not take: a log must never
        fail the command that it is of."""
        if self._file.closed or not data:
            return
        with contextlib.suppress(OSError):
            self.size += os.pwrite(self._file.fd(), data, self.size)
        if self.size - self.start > self._limit:
            self._give_back(self.size - self._limit // 2)
        self._followers.wake()

    def _give_back(self, end: int) -> None:
        """Frees what lies before `end`; where the file system cannot, it is only no longer shown."""
        self.start = end // BLOCK * BLOCK
        _libc.fallocate(self._file.fd(), PUNCH_HOLE | KEEP_SIZE, 0, self.start)

    def read(self, offset: int, size: int = CHUNK) -> bytes:
        """At most `size` bytes from offset, which is not before `start`; b"" at the end."""
        return b"" if self._file.closed else os.pread(self._file.fd(), size, offset)

    async def follow(self, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """(offset, bytes) as they come, until the spool is closed. What is no more kept is passed over; a reset goes
        on from its new beginning."""
        while not self._file.closed:
            offset = max(self.start, min(offset, self.size))
            if data := self.read(offset):
                yield offset, data
                offset += len(data)
                continue
            await self._followers.wait()

    def reset(self) -> None:
        """Empties it: the box's next user must not see what the last one printed."""
        if not self._file.closed:
            os.ftruncate(self._file.fd(), 0)
            self.size = self.start = 0
            self._followers.wake()

    def close(self, *, remove: bool) -> None:
        """Ends every follower."""
        self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)
        self._followers.wake()
