"""Tar archives to and from a tree's parts (tree.py), for clients that have no rockroll.

In: a stream of tar, compressed or not, or parts. Out: the other. Leaves the protection of the target to TreeWriter, and
carrying to endpoints.py. Reading blocks: call it from a thread.
"""

from __future__ import annotations

import tarfile
import time
from collections.abc import Generator, Iterator
from typing import IO

from rockroll.errors import UsageError
from rockroll.sandbox.fs.tree import (
    INLINE_BYTES,
    MOST_HARD_LINKED,
    PART_BYTES,
    PART_ITEMS,
    Enter,
    Extent,
    File,
    Leave,
    Link,
    Part,
    Same,
    Skipped,
    Whole,
    shown,
)

TAR = "application/x-tar"
_ZEROS = bytes(1 << 20)
_NS = 10**9


def parts_of(archive: IO[bytes]) -> Generator[Part, None, None]:
    """The parts of a tar archive that is read once, from its beginning to its end. UsageError where it is none."""
    part: Part = []
    held = 0
    try:
        with tarfile.open(fileobj=archive, mode="r|*", encoding="utf-8", errors="surrogateescape") as tar:
            for item in _items(tar):
                part.append(item)
                held += len(item.data or b"") if isinstance(item, File | Extent) else 0
                if held >= PART_BYTES or len(part) >= PART_ITEMS:
                    yield part
                    part, held = [], 0
    except tarfile.TarError as error:
        raise UsageError(f"the body is a tar archive, compressed or not; this one cannot be read: {error}") from None
    yield part


def _items(tar: tarfile.TarFile) -> Iterator[Enter | Leave | File | Extent | Whole | Link | Same | Skipped]:
    now = time.time_ns()
    folders: dict[tuple[bytes, ...], Leave] = {}
    numbers: dict[tuple[bytes, ...], int] = {}
    here: tuple[bytes, ...] = ()

    def left(path: tuple[bytes, ...]) -> Leave:
        return folders.get(path, Leave(0o755, now))

    def go(path: tuple[bytes, ...]) -> Iterator[Enter | Leave]:
        nonlocal here
        while here != path[: len(here)]:
            yield left(here)
            here = here[:-1]
        for name in path[len(here) :]:
            yield Enter(name)
            here = (*here, name)

    yield Enter(b"")
    for member in tar:
        path, mtime = _path(member.name), int(member.mtime * _NS)
        if member.isdir():
            yield from go(path)
            folders[path] = Leave(member.mode, mtime)
            continue
        if not path:
            raise UsageError("the archive has a file without a name")
        yield from go(path[:-1])
        name = path[-1]
        if member.issym():
            yield Link(name, member.linkname.encode("utf-8", "surrogateescape"), mtime)
        elif member.islnk():
            number = numbers.get(_path(member.linkname))
            yield (
                Same(name, number) if number else Skipped(b"/".join(path), "a hard link to what did not come before it")
            )
        elif member.isfile():
            number = len(numbers) + 1 if len(numbers) < MOST_HARD_LINKED else 0
            if number:
                numbers[path] = number
            data = tar.extractfile(member)
            assert data is not None
            if member.size <= INLINE_BYTES:
                yield File(name, member.mode, mtime, member.size, number, data.read())
                continue
            yield File(name, member.mode, mtime, member.size, number)
            offset = 0
            while piece := data.read(PART_BYTES):
                yield Extent(offset, memoryview(piece))
                offset += len(piece)
            yield Whole(member.size)
        else:
            yield Skipped(b"/".join(path), "neither a file, a folder nor a link")
    yield from go(())
    yield left(())


def _path(name: str) -> tuple[bytes, ...]:
    names = tuple(part for part in name.encode("utf-8", "surrogateescape").split(b"/") if part not in (b"", b"."))
    if b".." in names:
        raise UsageError(f"a name in the archive leads out of it: {shown(name.encode('utf-8', 'surrogateescape'))}")
    return names


class Archive:
    """Bytes of a tar archive, from parts as they come; `end()` after the last.

    top: the name of the tree's top where that is a file.
    """

    def __init__(self, top: bytes) -> None:
        self._top = top
        self._folders: list[bytes] = []
        self._numbers: dict[int, str] = {}
        self._file: File | None = None
        self._written = 0

    def add(self, part: Part) -> Iterator[bytes]:
        for item in part:
            match item:
                case Enter():
                    self._folders.append(item.name)
                    yield self._header(b"", tarfile.DIRTYPE, 0o755, 0)
                case Leave():
                    # Once more: what is in it has just been made, and its mode and time come with its end.
                    yield self._header(b"", tarfile.DIRTYPE, item.mode, item.mtime_ns)
                    self._folders.pop()
                case File():
                    if item.number:
                        self._numbers[item.number] = self._path(item.name)
                    yield self._header(item.name, tarfile.REGTYPE, item.mode, item.mtime_ns, size=item.size)
                    self._file, self._written = item, 0
                    if item.data is not None:
                        yield from self._extent(0, item.data)
                        yield from self._padded(item.size)
                case Extent():
                    yield from self._extent(item.offset, item.data)
                case Whole():
                    assert self._file is not None
                    yield from self._padded(self._file.size)
                case Link():
                    target = item.target.decode("utf-8", "surrogateescape")
                    yield self._header(item.name, tarfile.SYMTYPE, 0o777, item.mtime_ns, target=target)
                case Same():
                    target = self._numbers[item.number]
                    yield self._header(item.name, tarfile.LNKTYPE, 0o644, 0, target=target)
                case Skipped():
                    pass

    def end(self) -> bytes:
        return bytes(2 * tarfile.BLOCKSIZE)

    def _path(self, name: bytes) -> str:
        path = b"/".join([*self._folders[1:], *([name] if name else [])])
        return (path or (b"." if self._folders else self._top)).decode("utf-8", "surrogateescape")

    def _header(self, name: bytes, kind: bytes, mode: int, mtime_ns: int, size: int = 0, target: str = "") -> bytes:
        info = tarfile.TarInfo(self._path(name))
        info.type, info.mode, info.mtime, info.size, info.linkname = kind, mode, mtime_ns // _NS, size, target
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")

    def _extent(self, offset: int, data: bytes | memoryview) -> Iterator[bytes]:
        yield from self._zeros(offset - self._written)
        yield bytes(data)
        self._written = offset + len(data)

    def _padded(self, size: int) -> Iterator[bytes]:
        """To the size that the header said, and to a whole block."""
        yield from self._zeros(size - self._written)
        yield from self._zeros(-size % tarfile.BLOCKSIZE)

    def _zeros(self, count: int) -> Iterator[bytes]:
        while count > 0:
            yield _ZEROS[:count]
            count -= len(_ZEROS)
