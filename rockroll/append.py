"""Files that a full disk may not break: bytes are added or written as a whole, or not at all.

In: bytes. Out: all of them in the file, or none and a HostError that says what to free. Leaves the form of a record to
the callers.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Self

from rockroll.errors import HostError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LITTLE = 2**20
"""Bytes. What a library that says no number leaves of a disk that it has filled."""


class Appended:
    """One file, opened to be added to; made where it is not there. Its folder must be. HostError where it cannot be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._end = os.fstat(self._file).st_size
        except OSError as error:
            raise unwritable(path, error) from None

    @property
    def size(self) -> int:
        """Bytes in it now."""
        return self._end

    def add(self, data: bytes) -> None:
        """Returns when the kernel has all of it: it survives the death of every process. HostError: none is there."""
        try:
            if os.write(self._file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file, self._end)  # a torn record in the middle would hide those after it
            raise unwritable(self.path, error) from None
        self._end += len(data)

    def sync(self) -> None:
        """Returns when it is on the disk: it survives loss of power."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def close(self) -> None:
        """A second time it does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_whole(path: Path, data: bytes) -> None:
    """The file with exactly this content: written aside, then given its name. HostError: what was there still is."""
    aside = path.with_name(path.name + ".tmp")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise unwritable(path, error) from None


def unwritable(path: Path, error: BaseException) -> HostError:
    """The sentence about a file or folder that could not be written."""
    return HostError(f"{path} cannot be written: {cause(path, error)}")


def cause(path: Path, error: BaseException) -> str:
    """Why, and what to do about it; of a full disk also how much room it has."""
    code = error.errno if isinstance(error, OSError) else None
    said = os.strerror(code) if code else str(error).partition("\n")[0]
    if not is_full(path, error):
        return f"{said}; is the folder there, and may this user write to it?"
    said = said if code else os.strerror(errno.ENOSPC)
    left = _left(path)
    room = "" if left is None else f", {left / 2**20:.1f} MiB left"
    return (
        f"its disk is full ({said}{room}); what was there before is intact: free some space (old runs and their "
        "checkpoints are the largest; checkpoint.keep bounds them), then continue with --resume"
    )


def is_full(path: Path, error: BaseException) -> bool:
    """Whether it is for want of room on the disk. torch and safetensors raise errors of their own, without a number."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    left = _left(path)
    return "os error 28" in str(error) or (left is not None and left < _LITTLE)


def _left(path: Path) -> int | None:
    for folder in path.parents:
        if folder.exists():
            return shutil.disk_usage(folder).free
    return None
