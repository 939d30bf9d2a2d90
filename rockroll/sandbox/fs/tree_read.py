"""A file or a folder, read into parts (tree.py).

In: a descriptor of what is to be copied, opened with O_PATH. Out: parts, in bounded memory whatever the size. Nothing
but regular files is opened, no link is followed, and the kernel's own file systems (proc, sysfs) are not entered. All
of it blocks: take each part from a thread.

A tree that changes meanwhile is no error: what is gone when its turn comes is Skipped, what was written to while it was
read is copied and told.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator

from rockroll.errors import FileError
from rockroll.sandbox.fs.tree import (
    INLINE_BYTES,
    MOST_HARD_LINKED,
    PART_BYTES,
    PART_ITEMS,
    Enter,
    Extent,
    File,
    Item,
    Leave,
    Link,
    Part,
    Same,
    Skipped,
    Whole,
    shown,
)
from rockroll.sandbox.linux.beneath import FOLDER, Descent, beneath, kernel_secret, kernel_type, opened

_LOOK = os.O_PATH | os.O_NOFOLLOW
_GONE = (errno.ENOENT, errno.ESTALE)


def read_tree(top: int) -> Iterator[Part]:
    """Parts of the file or folder that `top` is a descriptor of. FileError for anything else, and for what may not be
    read; the message says which path of the tree it is."""
    part: Part = []
    weight = 0
    reader = _Reader(top)
    try:
        for item in reader.items():
            part.append(item)  # type: ignore[arg-type]  # Item is the base of just those
            weight += _weight(item)
            if weight >= PART_BYTES or len(part) >= PART_ITEMS:
                yield part
                part, weight = [], 0
    except OSError as error:
        raise FileError(f"{reader.where} cannot be read: {os.strerror(error.errno or 0)}") from error
    finally:
        reader.close()
    if part:
        yield part


def _weight(item: Item) -> int:
    match item:
        case File(data=bytes() as data) | Extent(data=data):
            return len(data)
        case Link(target=target):
            return len(target)
        case Skipped(path=path):
            return len(path)
    return 0


class _Reader:
    def __init__(self, top: int) -> None:
        self._top = top
        self._descent: Descent | None = None
        self._numbers: dict[tuple[int, int], int] = {}
        self._name = b""

    @property
    def where(self) -> str:
        """The path in the tree that is being read, for errors."""
        path = shown(self._path(self._name))
        return repr(path) if path else "it"

    def close(self) -> None:
        if self._descent:
            self._descent.close()

    def items(self) -> Iterator[Item]:
        status = os.fstat(self._top)
        if stat.S_ISREG(status.st_mode):
            if kernel_secret(self._top):
                raise FileError("it is the kernel's, and not everybody may read it; read it with a command")
            yield from self._file(b"", self._top, status)
        elif stat.S_ISDIR(status.st_mode):
            if kind := kernel_type(self._top):
                raise FileError(f"a folder of {kind} is no tree of files; read single files of it")
            self._descent = Descent(os.open(f"/proc/self/fd/{self._top}", FOLDER & ~os.O_NOFOLLOW | os.O_CLOEXEC))
            yield from self._folders(self._descent)
        else:
            raise FileError(f"it is a {_kind(status.st_mode)}, and only files and folders are copied")

    def _folders(self, way: Descent) -> Iterator[Item]:
        """Depth first; a folder's files before its folders, so that one list of folders a level is all that waits."""
        yield Enter(b"")
        first = yield from self._folder(way.fd)
        waiting = [first]
        while waiting:
            if waiting[-1]:
                name = self._name = waiting[-1].pop()
                try:
                    device = os.fstat(way.fd).st_dev
                    way.enter(name)
                except OSError as error:
                    # It was a folder when it was listed: a link is there now, or nothing.
                    if error.errno not in (*_GONE, errno.ELOOP, errno.ENOTDIR):
                        raise
                    yield Skipped(way.path(name), "it was removed or replaced meanwhile")
                    continue
                self._name = b""
                if os.fstat(way.fd).st_dev != device and (kind := kernel_type(way.fd)):
                    path = way.path()
                    way.leave()
                    yield Skipped(path, f"a kernel file system ({kind})")
                    continue
                yield Enter(name)
                waiting.append((yield from self._folder(way.fd)))
            else:
                waiting.pop()
                try:
                    status = os.fstat(way.fd)
                    yield Leave(stat.S_IMODE(status.st_mode), status.st_mtime_ns)
                except OSError as error:
                    if error.errno not in (*_GONE, errno.ELOOP, errno.ENOTDIR):
                        raise
                    yield Skipped(way.path(), "it was removed or replaced meanwhile", copied=True)
                    yield Leave(0o755, 0)
                if waiting:
                    way.leave()

    def _folder(self, folder: int) -> Generator[Item, None, list[bytes]]:
        """What is in it but its folders, whose names are returned."""
        folders: list[bytes] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = self._name = os.fsencode(entry.name)
                    if entry.is_dir(follow_symlinks=False) or (yield from self._leaf(folder, name)):
                        folders.append(name)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            yield Skipped(self._path(b""), "it was removed while it was listed", copied=True)
        self._name = b""
        return folders

    def _leaf(self, folder: int, name: bytes) -> Generator[Item, None, bool]:
        """What was no folder when it was listed; True where it is one by now."""
        try:
            look = beneath(folder, name, _LOOK)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            yield Skipped(self._path(name), "it was removed meanwhile")
            return False
        with opened(look):
            status = os.fstat(look)
            if stat.S_ISREG(status.st_mode):
                yield from self._file(name, look, status)
            elif stat.S_ISLNK(status.st_mode):
                yield Link(name, os.readlink(b"", dir_fd=look), status.st_mtime_ns)
            elif not stat.S_ISDIR(status.st_mode):
                yield Skipped(self._path(name), f"a {_kind(status.st_mode)}")
            return stat.S_ISDIR(status.st_mode)

    def _path(self, name: bytes) -> bytes:
        return self._descent.path(name) if self._descent else name

    def _file(self, name: bytes, look: int, status: os.stat_result) -> Iterator[Item]:
        number = 0
        if status.st_nlink > 1 and self._descent:
            key = status.st_dev, status.st_ino
            if known := self._numbers.get(key):
                yield Same(name, known)
                return
            if len(self._numbers) < MOST_HARD_LINKED:
                number = self._numbers[key] = len(self._numbers) + 1
        # `look` is known to be a regular file: opening anything else, even to look at it, may already do something.
        with opened(os.open(f"/proc/self/fd/{look}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
            mode, mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns
            if status.st_size <= INLINE_BYTES:
                data = _read(fd, status.st_size)
                yield File(name, mode, mtime, len(data), number, data)
            else:
                yield File(name, mode, mtime, status.st_size, number)
                end = yield from self._extents(fd, status)
                yield Whole(end)
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                yield Skipped(self._path(name), "it was written to while it was read", copied=True)

    def _extents(self, fd: int, status: os.stat_result) -> Generator[Item, None, int]:
        """Its data but not its holes; what is beyond the size it had at first is left. Returns where it ended."""
        sparse = status.st_blocks * 512 < status.st_size
        offset, size = 0, status.st_size
        while offset < size:
            end = size
            if sparse:
                try:
                    offset = os.lseek(fd, offset, os.SEEK_DATA)
                    end = min(size, os.lseek(fd, offset, os.SEEK_HOLE))
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    break  # a hole up to the end
            while offset < end:
                data = os.pread(fd, min(PART_BYTES, end - offset), offset)
                if not data:
                    return offset  # it has shrunk
                yield Extent(offset, memoryview(data))
                offset += len(data)
        return min(size, os.fstat(fd).st_size)


def _read(fd: int, size: int) -> bytes:
    """All of a small file. A size of 0 may be a lie of the kernel's own files."""
    data = os.read(fd, size or INLINE_BYTES)
    while data and len(data) != size and (more := os.read(fd, INLINE_BYTES - len(data))):
        data += more
    return data


def _kind(mode: int) -> str:
    for known, word in (
        (stat.S_ISFIFO, "FIFO"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISBLK, "block device"),
        (stat.S_ISCHR, "character device"),
        (stat.S_ISLNK, "link"),
    ):
        if known(mode):
            return word
    return "special file"
