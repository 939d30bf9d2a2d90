"""Snapshots of this home: what boxes had written at one moment, under a name, to start others from.

In: a name, and somebody who fills a folder. Out: node/snapshots/NAME/{about.json, files}. Files only: no process, no
session. Leaves the copying to layer.py and what a box is made from to maker.py.

    .new-NAME-x ── filled ──► NAME ── delete ──► .gone-NAME-x ──► (nothing)
       └─ a node that is killed leaves this one, or that one: `sweep` ──┘
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from rockroll import home
from rockroll.errors import SandboxError, SnapshotNotFound, UsageError
from rockroll.sandbox.boxes import recycle
from rockroll.sandbox.config import NAME
from rockroll.sandbox.container import layer
from rockroll.sandbox.wire import MOVED, SnapshotInfo

_log = logging.getLogger(__name__)
Fill = Callable[[Path], Awaitable[None]]
"""Copies a box's files into an empty folder."""
MOVED_S = 3600.0
"""A fork on its way to another node is over by then. Who began it removes its snapshot, unless it was killed."""


class Snapshots:
    """Only the node writes here."""

    def __init__(self) -> None:
        self._folder = home.node_dir() / "snapshots"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._used: dict[str, int] = {}

    async def sweep(self) -> None:
        """Removes what an earlier node had not finished making or removing, and what forks have left."""
        await self._end_forks()
        for path in self._folder.glob(".*"):
            try:
                await layer.remove(path)
            except SandboxError as error:
                _log.error("%s of an earlier node stays: %s", path, error)

    async def take(self, info: SnapshotInfo, fill: Fill) -> SnapshotInfo:
        """A snapshot as `info` says, whose size is still to be found. Raises UsageError where the name is taken."""
        self._check_new(info.name)
        if info.name.startswith(MOVED):
            await self._end_forks()
        made = self._folder / f".new-{info.name}-{secrets.token_hex(4)}"
        made.mkdir(mode=0o700)
        try:
            (made / "files").mkdir()
            await fill(made / "files")
            info = msgspec.structs.replace(info, size_bytes=await asyncio.to_thread(recycle.disk_bytes, made / "files"))
            (made / "about.json").write_bytes(msgspec.json.encode(info))
            self._check_new(info.name)
            made.rename(self._folder / info.name)
        except BaseException:
            await asyncio.shield(layer.remove(made))
            raise
        return info

    async def _end_forks(self) -> None:
        for info in self.all():
            if info.name.startswith(MOVED) and info.created < time.time() - MOVED_S:
                with contextlib.suppress(SandboxError):  # somebody else removes it, or starts from it
                    await self.delete(info.name)

    def _check_new(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise UsageError(
                f"a snapshot's name: at most 63 letters, digits and _ . -, a letter or digit first; got {name!r}"
            )
        if (self._folder / name).exists():
            raise UsageError(
                f"a snapshot named {name!r} exists; take another name, or remove it (`rockroll sandbox snapshots --rm"
                f" {name}`)"
            )

    def all(self) -> list[SnapshotInfo]:
        """Every snapshot, the oldest first."""
        found = [_read(path) for path in self._folder.glob("[!.]*/about.json")]
        return sorted(found, key=lambda info: info.created)

    def get(self, name: str) -> SnapshotInfo:
        """Raises SnapshotNotFound."""
        try:
            return _read(self._folder / name / "about.json")
        except (FileNotFoundError, NotADirectoryError, ValueError):
            pass
        names = ", ".join(info.name for info in self.all()) or "none"
        raise SnapshotNotFound(f"no snapshot {name!r}; there are: {names}")

    @contextlib.asynccontextmanager
    async def files(self, name: str) -> AsyncIterator[Path]:
        """The folder of its files, which stays as long as the context."""
        self.get(name)
        self._used[name] = self._used.get(name, 0) + 1
        try:
            yield self._folder / name / "files"
        finally:
            self._used[name] -= 1

    async def delete(self, name: str) -> SnapshotInfo:
        """Raises SnapshotNotFound; SandboxError while a box is being started from it."""
        info = self.get(name)
        if self._used.get(name):
            raise SandboxError(f"a sandbox is being started from snapshot {name!r}; remove it when that is done")
        gone = self._folder / f".gone-{name}-{secrets.token_hex(4)}"
        (self._folder / name).rename(gone)
        await asyncio.shield(layer.remove(gone))
        return info


def _read(about: Path) -> SnapshotInfo:
    return msgspec.json.decode(about.read_bytes(), type=SnapshotInfo)
