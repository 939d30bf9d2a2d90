"""Files of a box, one by one; watching them.

In and out: plain values; paths are bytes. Leaves whole trees to fs/tree.py, whose parts file.get and file.put carry.
"""

from __future__ import annotations

from typing import Literal

from rockroll.sandbox.wire.base import Struct


class WriteFile(Struct, frozen=True):
    id: str
    path: bytes
    data: bytes
    mode: int = 0o644
    append: bool = False


class ReadFile(Struct, frozen=True):
    id: str
    path: bytes
    offset: int = 0
    limit: int = 16 << 20


class FileChunk(Struct, frozen=True):
    data: bytes
    size: int
    """Of the whole file, in bytes, when it was read."""
    mode: int = 0o644


class ListFiles(Struct, frozen=True):
    id: str
    path: bytes


class FileStat(Struct, frozen=True):
    name: str
    """Bytes that are not UTF-8 are shown with escapes. In a recursive list, the path from the folder on."""
    kind: Literal["file", "dir", "link", "other"]
    size: int
    mode: int
    mtime: float = 0.0
    """Unix time in seconds."""
    raw: bytes | None = None
    """The name's bytes, where they are not UTF-8."""
    target: str | None = None
    """Where a link points to; in answers about one path only."""

    @property
    def path_bytes(self) -> bytes:
        """The exact name."""
        return self.name.encode() if self.raw is None else self.raw


class PathOf(Struct, frozen=True):
    """The body of file.get, file.put and file.walk."""

    id: str
    path: bytes


class StatFile(Struct, frozen=True):
    id: str
    path: bytes
    follow: bool = True
    """Tell of what a link at the path's end points to, not of the link."""


class MakeFolder(Struct, frozen=True):
    id: str
    path: bytes
    mode: int = 0o755


class RemoveFile(Struct, frozen=True):
    id: str
    path: bytes
    recursive: bool = False


class MoveFile(Struct, frozen=True):
    id: str
    source: bytes
    target: bytes


class WatchFiles(Struct, frozen=True):
    id: str
    path: bytes
    recursive: bool = False


class FileEvent(Struct, frozen=True):
    """One change in a watched folder."""

    kind: Literal["created", "modified", "deleted", "moved", "overflow"]
    """overflow: changes were lost; look at the folder yourself."""
    path: str
    """As the box sees it; bytes that are not UTF-8 are shown with escapes."""
    moved_from: str | None = None
    """The path before, of `moved`."""
