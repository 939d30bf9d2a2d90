"""Every answered turn, on disk before its agent has the end of it.

In: turns as they are answered. Out: RUN_DIR/journal/N.journal, and its entries again for whoever reads it. Leaves what
is trained to transcript.py: the journal says what was sampled, whatever became of its episode afterwards.

A file is MAGIC and then records (frames.py), each an Entry as msgpack. Records are only ever added, and each opening
begins a file, so that the one thing a death can leave is a torn last record.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Self

import msgspec

from rockroll.append import cause
from rockroll.errors import HostError
from rockroll.rollout import frames

Mode = Literal["off", "write", "fsync"]
"""write: handed to the kernel, survives the death of every process. fsync: on the disk, survives loss of power."""

MAGIC = b"rockroll journal 1\n"


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One answered turn. `new` and `sampled` are its ids beyond those of the turn it goes on from."""

    episode: str
    number: int
    """Of the turn in its episode, from 0 on."""
    after: int | None
    """The number of the turn it goes on from; None: it begins a branch, and `new` is its whole prompt."""
    new: list[int]
    """Ids of the prompt."""
    sampled: list[int]
    logprobs: list[float]
    versions: list[int]
    """Of the weights, for each sampled token."""
    finish_reason: str
    at: float = 0.0
    """Unix time."""


class Journal:
    """open ─► put … ─► close. Belongs to one event loop. Mode off: nothing is written anywhere.

    HostError where the folder cannot be written.
    """

    def __init__(self, folder: Path, mode: Mode = "write") -> None:
        self.mode = mode
        self.number = 0
        """Of the file: as many runs wrote here before."""
        self._file = -1
        self._end = len(MAGIC)
        self._syncing: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        if mode == "off":
            return
        self._thread = ThreadPoolExecutor(1, "journal")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            numbers = [int(each.stem) for each in folder.glob("*.journal") if each.stem.isdigit()]
            self.number = max(numbers, default=-1) + 1
            self.path = folder / f"{self.number:05}.journal"
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            os.write(self._file, MAGIC)
            if mode == "fsync":
                _sync_folder(folder)
        except OSError as error:
            raise HostError(f"the journal in {folder} cannot be written: {error.strerror}") from None

    async def put(self, entry: Entry) -> None:
        """Returns when the entry is as safe as the mode promises. HostError where it cannot be written."""
        if self._file < 0:
            return
        record = frames.pack(msgspec.msgpack.encode(entry))
        try:
            if os.write(self._file, record) < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file, self._end)  # no torn record in the middle
            raise HostError(f"the journal {self.path} cannot be written: {cause(self.path, error)}") from None
        self._end += len(record)
        if self.mode == "fsync":
            await asyncio.shield(self._synced())

    def _synced(self) -> asyncio.Task[None]:
        """A sync that begins after now: one under way may have missed what was just written, so all that come during
        it share the next."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._sync(self._syncing))
        return self._next

    async def _sync(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,))
        self._syncing, self._next = self._next, None
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, os.fdatasync, self._file)
        except OSError as error:
            raise HostError(f"the journal {self.path} cannot be synced: {error.strerror}") from None

    async def close(self) -> None:
        """A second time it does nothing."""
        if self._file < 0:
            return
        syncs = [each for each in (self._syncing, self._next) if each is not None]
        await asyncio.gather(*syncs, return_exceptions=True)
        os.close(self._file)
        self._file = -1
        self._thread.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def read(path: Path) -> Iterator[Entry]:
    """The entries of one file, or of all in a folder, in their order. What a death left torn at the end is left out.

    UsageError for what is no journal, HostError for one that was damaged before its end.
    """
    if path.is_dir():
        for each in sorted(path.glob("*.journal")):
            yield from read(each)
        return
    decode = msgspec.msgpack.Decoder(Entry).decode
    for body in frames.unpack(path, MAGIC, "journal"):
        yield decode(body)


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
