"""Files of a sandbox, read and written from outside it, by paths that cannot lead out of it.

In: the pid of the box's init, a path as the box sees it. Out: bytes, or a FileError. Every path is resolved by the
kernel inside the box's root (openat2: RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS), so that `..`, absolute links and links
swapped meanwhile stay inside; only regular files and folders are opened, never a FIFO or device. All of it blocks:
call it from a thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal

from rockroll.errors import FileError, SandboxLost
from rockroll.sandbox.wire import FileChunk, FileStat

SYS_OPENAT2 = 437
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10
READ_LIMIT = 64 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def host_id(pid: int, kind: Literal["uid", "gid"], inside: int) -> int:
    """What a uid or gid of the box of pid is called in this process's user namespace. SandboxLost when pid is gone."""
    try:
        lines = Path(f"/proc/{pid}/{kind}_map").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise SandboxLost("the sandbox is not running") from None
    for line in lines:
        first, there, count = map(int, line.split())
        if first <= inside < first + count:
            return there + inside - first
    return os.getuid()  # not mapped: nobody in the box can be it either


@contextmanager
def root_of(pid: int) -> Iterator[int]:
    """A descriptor of the root folder that pid sees. Raises SandboxLost."""
    try:
        fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise SandboxLost("the sandbox is not running: its files cannot be reached") from None
    try:
        yield fd
    finally:
        os.close(fd)


def open_in(root: int, path: str, flags: int, mode: int = 0) -> int:
    """openat2 below `root`; OSError as open() would raise it."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    fd = _libc.syscall(SYS_OPENAT2, root, os.fsencode(path), how, len(how))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return fd


def write(pid: int, path: str, data: bytes, mode: int, append: bool, owner: tuple[int, int]) -> None:
    """Writes a file; makes it and its folders where missing, owned by `owner` (uid, gid on this host).

    mode: set unless appending to a file that exists.
    """
    _check(path)
    with root_of(pid) as root, _told(path, "written"):
        parent = _parents(root, str(PurePosixPath(path).parent), owner)
        try:
            name = PurePosixPath(path).name
            if not name or name == "..":
                raise FileError(f"{path} names a folder; a file needs a name")
            new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                fd, made = os.open(name, new, 0o600, dir_fd=parent), True
            except FileExistsError:
                # Resolved from the root once more: it may be a link, and a link may be absolute.
                flags = os.O_WRONLY | (os.O_APPEND if append else os.O_TRUNC)
                fd, made = _regular(root, path, flags), False
        finally:
            os.close(parent)
        try:
            if made:
                os.fchown(fd, *owner)
            if made or not append:
                os.fchmod(fd, mode & 0o7777)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)


def read(pid: int, path: str, offset: int, limit: int) -> FileChunk:
    """At most `limit` bytes from offset, and the file's whole size."""
    _check(path)
    if offset < 0 or limit < 0:
        raise FileError(f"offset and limit are zero or more; got {offset} and {limit}")
    with root_of(pid) as root, _told(path, "read"):
        fd = _regular(root, path, os.O_RDONLY)
        try:
            status = os.fstat(fd)
            parts: list[bytes] = []
            left = min(limit, READ_LIMIT)
            while left > 0 and (data := os.pread(fd, min(left, 1 << 20), offset)):
                parts.append(data)
                offset += len(data)
                left -= len(data)
            return FileChunk(data=b"".join(parts), size=max(status.st_size, offset), mode=stat.S_IMODE(status.st_mode))
        finally:
            os.close(fd)


def list_folder(pid: int, path: str) -> list[FileStat]:
    """What is in a folder, by name; links are not followed."""
    _check(path)
    with root_of(pid) as root, _told(path, "listed"):
        fd = open_in(root, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        try:
            with os.scandir(fd) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        finally:
            os.close(fd)
    return [
        FileStat(name=_text(name), kind=_kind(status.st_mode), size=status.st_size, mode=stat.S_IMODE(status.st_mode))
        for name, status in sorted(found)
    ]


def _regular(root: int, path: str, flags: int) -> int:
    """Opens a regular file. Looks first, without opening: opening a device or a FIFO already does something."""
    look = open_in(root, path, os.O_PATH)
    try:
        kind = _kind(os.fstat(look).st_mode)
        if kind != "file":
            raise FileError(f"{path} is a {'folder' if kind == 'dir' else 'special file'}, not a regular file")
        return os.open(f"/proc/self/fd/{look}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(look)


def _parents(root: int, path: str, owner: tuple[int, int]) -> int:
    """A descriptor of the folder at path, made with all above it where missing."""
    folder = os.O_PATH | os.O_DIRECTORY
    try:
        return open_in(root, path, folder)
    except FileNotFoundError:
        above = PurePosixPath(path)
        if above.name in ("", ".."):
            raise
    parent = _parents(root, str(above.parent), owner)
    try:
        try:
            os.mkdir(above.name, 0o755, dir_fd=parent)
            os.chown(above.name, *owner, dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            pass  # made meanwhile, or a link that leads nowhere: the next line tells
    finally:
        os.close(parent)
    return open_in(root, path, folder)


def _check(path: str) -> None:
    if not path.startswith("/"):
        raise FileError(f"a path in the sandbox is absolute, as in /root/notes.txt; got {path!r}")
    if "\0" in path:
        raise FileError(f"a path cannot hold a NUL byte; got {path!r}")
    if len(PurePosixPath(path).parts) > 500:
        raise FileError(f"a path of {len(PurePosixPath(path).parts)} folders is too deep: 500 at most")


@contextmanager
def _told(path: str, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FileError(f"{path} cannot be {done}: no space is left in the sandbox") from error
        if error.errno == errno.ENOENT:
            raise FileError(f"{path}: no such file or folder in the sandbox") from error
        raise FileError(f"{path} cannot be {done}: {os.strerror(error.errno or 0)}") from error


def _kind(mode: int) -> Literal["file", "dir", "link", "other"]:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "dir"
    return "link" if stat.S_ISLNK(mode) else "other"


def _text(name: str) -> str:
    """Names are bytes; msgpack carries text: what is not UTF-8 is shown with escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
