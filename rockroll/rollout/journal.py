"""Every answered turn, on disk before its agent has the end of it.

In: turns as they are answered. Out: RUN_DIR/journal/N.journal, and its entries again for whoever reads it. Leaves what
is trained to transcript.py: the journal says what was sampled, whatever became of its episode afterwards.

A file is MAGIC and then records (frames.py), each an Entry as msgpack. Records are only ever added, and each opening
begins a file, so that the one thing a death can leave is a torn last record.

All files of a folder together are bounded, if that is wanted: one that has grown to an eighth of the bound is closed
and the next is begun, and the oldest are deleted, whichever run wrote them.
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
FILES = 8
"""How many files a bounded journal is in, about."""


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

    most: bytes of all files in the folder, a little more while it is written; None: no bound. 0: as None, and what
    this journal wrote is deleted when its block ends without an exception.
    HostError where the folder cannot be written.
    """

    def __init__(self, folder: Path, mode: Mode = "write", most: int | None = None) -> None:
        self.mode = mode
        self.number = 0
        """Of the file under way: as many were begun here before, by any run."""
        self._folder, self._most = folder, most
        self._written: list[Path] = []
        self._file = -1
        self._end = len(MAGIC)
        self._syncing: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        if mode == "off":
            return
        self._thread = ThreadPoolExecutor(1, "journal")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._begin()
        except OSError as error:
            raise HostError(f"the journal in {folder} cannot be written: {error.strerror}") from None

    def _begin(self) -> None:
        """The next file; the oldest go that are over the bound."""
        files = _files(self._folder)
        number = max(files, default=-1) + 1
        path = self._folder / f"{number:05}.journal"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            os.write(file, MAGIC)
        except OSError:
            os.close(file)
            path.unlink()
            raise
        self.path, self.number, self._file, self._end = path, number, file, len(MAGIC)
        self._written.append(path)
        if self.mode == "fsync":
            _sync_folder(self._folder)
        if self._most:
            size = {old: path.stat().st_size for old, path in files.items()}
            for old in sorted(files):
                if sum(size.values()) <= self._most - self._most // FILES:
                    break
                files[old].unlink()
                del size[old]

    def _roll(self) -> None:
        """What is in this file is as safe as its mode promises before the next one is begun: a sync that is still to
        come will be of that."""
        before = self._file
        if self.mode == "fsync":
            os.fdatasync(before)
        self._begin()
        os.close(before)

    async def put(self, entry: Entry) -> None:
        """Returns when the entry is as safe as the mode promises. HostError where it cannot be written."""
        if self._file < 0:
            return
        record = frames.pack(msgspec.msgpack.encode(entry))
        try:
            if self._most and self._end > self._most // FILES:
                self._roll()
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
        file = os.dup(self._file)  # this file, whatever is begun meanwhile
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, os.fdatasync, file)
        except OSError as error:
            raise HostError(f"the journal {self.path} cannot be synced: {error.strerror}") from None
        finally:
            os.close(file)

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

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self.close()
        if self._most == 0 and kind is None:
            for each in self._written:
                each.unlink(missing_ok=True)


def read(path: Path) -> Iterator[Entry]:
    """The entries of one file, or of all in a folder, in their order. What a death left torn at the end is left out.

    UsageError for what is no journal, HostError for one that was damaged before its end.
    """
    if path.is_dir():
        for _, each in sorted(_files(path).items()):
            yield from read(each)
        return
    decode = msgspec.msgpack.Decoder(Entry).decode
    for body in frames.unpack(path, MAGIC, "journal"):
        yield decode(body)


def _files(folder: Path) -> dict[int, Path]:
    return {int(each.stem): each for each in folder.glob("*.journal") if each.stem.isdigit()}


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
