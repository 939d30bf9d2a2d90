"""Folders that are there as a whole or not at all.

In: a path, and a function's worth of writing beside it. Out: the folder under its name, the old one gone. Leaves the
contents to export.py and checkpoint.py.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def aside(path: Path) -> Path:
    """Where the folder is written before it takes its name: beside it, so on the same file system, and empty."""
    partial = path.with_name(path.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)  # left by a process that was killed
    partial.mkdir(parents=True)
    return partial


def put(partial: Path, path: Path, *, durable: bool = False) -> None:
    """Give `partial` the name `path`, in one step where the file system can; what was there is removed.

    durable: the contents are on the disk before the name is.
    """
    if durable:
        for file in [*partial.rglob("*"), partial]:
            _sync(file)
    if not path.exists():
        partial.rename(path)
    else:
        if not _exchange(partial, path):
            old = path.with_name(path.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            partial.rename(path)
            partial = old
        shutil.rmtree(partial)
    if durable:
        _sync(path.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names at once; False where the file system cannot (overlay on old kernels, NFS)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
