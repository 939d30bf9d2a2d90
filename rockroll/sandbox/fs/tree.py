"""A tree of files as a stream of parts: what both ends of a copy agree on.

In and out: lists of the Structs below, about half a mebibyte a list. Names only, never paths: where a thing is follows
from the folders entered before it, so that no stream can name a place outside its tree. Leaves reading to tree_read.py
and writing to tree_write.py.

    a file:    File [Extent* Whole]
    a folder:  Enter (File [Extent* Whole] | Link | Same | Skipped | a folder)* Leave
    the top is one of both, with the name b""; then nothing, or Skipped
"""

from __future__ import annotations

from typing import Literal

import msgspec

PART_BYTES = 1 << 19
"""File data in one part, about. Measured: half of it costs a thread's turn too often, twice of it page faults."""
PART_ITEMS = 400
"""Structs in one part, at most."""
INLINE_BYTES = 128 << 10
"""A file up to this size travels whole in its File."""
MOST_HARD_LINKED = 100_000
"""Files with several names that are remembered; the names of any more become files of their own."""
MODE_BITS = 0o777
"""What is kept of a mode. suid, sgid and sticky bits are not: the copy belongs to somebody else."""

Links = Literal["inside", "all"]
"""Symbolic links that a copy makes: those that stay in the tree, or all of them. None is ever followed."""


class Item(msgspec.Struct, frozen=True, array_like=True):
    """Base of all."""


class Enter(Item, frozen=True, array_like=True, tag=1):
    name: bytes


class Leave(Item, frozen=True, array_like=True, tag=2):
    """Of the folder entered last. It comes after what is in it: making that would change the time."""

    mode: int
    mtime_ns: int


class File(Item, frozen=True, array_like=True, tag=3):
    name: bytes
    mode: int
    mtime_ns: int
    size: int
    number: int = 0
    """Not 0: it has other names, and a Same may follow that says this number."""
    data: bytes | None = None
    """All of it, or None: Extents follow, and a Whole."""


class Extent(Item, frozen=True, array_like=True, tag=4):
    """Bytes of the last File; what no Extent covers is a hole."""

    offset: int
    data: memoryview


class Whole(Item, frozen=True, array_like=True, tag=5):
    """The end of the last File."""

    size: int
    """As it was found: less than its File said where it shrank meanwhile."""


class Link(Item, frozen=True, array_like=True, tag=6):
    name: bytes
    target: bytes
    mtime_ns: int


class Same(Item, frozen=True, array_like=True, tag=7):
    """One more name of an earlier File: a hard link."""

    name: bytes
    number: int


class Skipped(Item, frozen=True, array_like=True, tag=8):
    """Something that is not copied, or that changed while it was read."""

    path: bytes
    """From the top on."""
    why: str
    copied: bool = False
    """It is there, but perhaps not as it was at any one time."""


Part = list[Enter | Leave | File | Extent | Whole | Link | Same | Skipped]


class LeftOut(msgspec.Struct, frozen=True):
    """Something of a tree that was not copied."""

    path: str
    """From the tree's top on; "" is the top itself. Bytes that are not UTF-8 are shown with escapes."""
    why: str


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy did. Left out is never an error, and never silent: it is here."""

    files: int = 0
    folders: int = 0
    """Folders gone through, made or there already."""
    links: int = 0
    """Symbolic ones."""
    bytes: int = 0
    """Of file data that travelled; holes do not."""
    left_out: list[LeftOut] = []
    """The first MOST_NAMED of them."""
    left_out_count: int = 0
    changed: list[LeftOut] = []
    """Files that were written to while they were read: the copy may be of two moments. The first MOST_NAMED."""


MOST_NAMED = 1000


def shown(path: bytes) -> str:
    """Names are bytes; what is not UTF-8 is shown with escapes."""
    return path.decode("utf-8", "backslashreplace")
