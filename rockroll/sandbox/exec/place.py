"""The folder of one shell, which its box sees read-only: files and FIFOs that belong to the box's user.

In: the folder under its two names, the user as this host numbers it. Out: files in it. Leaves what they are for to
shell.py, stream.py and state.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """One folder under its two names."""

    host: Path
    inside: str


def fifo(path: Path, uid: int, mode: int) -> None:
    os.mkfifo(path, mode)
    path.chmod(mode)  # whatever this process's umask is
    os.chown(path, uid, -1)


def write(fd: int, data: bytes, before: int = 0) -> None:
    """Makes `data` the file's content; it had `before` bytes."""
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], written)
    if len(data) < before:
        os.ftruncate(fd, len(data))
