"""The record of one command, in one file: what was asked, its output by offset, how it ended.

In: a header before the command is typed, bytes as they come, an end. Out: the bytes from any offset on, to any number
of readers, while it runs and after; after a crash of the node, what was written until then. Leaves running to
commands.py.

    frame = kind (1 byte) · length (4 bytes, big endian) · body
    H (what was asked)   then 1 and 2 (stdout, stderr) in order of arrival   then E (an Observation without its bytes)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import struct
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from rockroll.sandbox.linux.followers import Followers
from rockroll.sandbox.linux.kept import KeptFile
from rockroll.sandbox.wire import Observation

_HEAD = struct.Struct(">cI")
PART = 1 << 16
MOST_FRAMES = 1 << 16
"""What the node remembers of one command's output has an end, however its streams alternate."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a command is."""

    command_id: str
    session: str | None
    """None: a program without a shell."""
    text: str
    """The beginning of it, to show."""
    digest: bytes
    """Of all of it: the same id with another digest is another command."""
    begun: float
    """Unix time in seconds."""


class Part(NamedTuple):
    """A piece of output. offset: of its first byte, in the output of both streams in order of arrival."""

    offset: int
    stream: int
    data: bytes


class Journal:
    """See the module's drawing. One writer; `follow` may be called any number of times."""

    def __init__(self, path: Path, asked: Asked) -> None:
        """A new one: the header is in the file when this returns. FileExistsError where there is one."""
        self._begin(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, asked)
        self._append(b"H", msgspec.msgpack.encode(asked))

    def _begin(self, path: Path, flags: int, asked: Asked) -> None:
        self.path, self.asked = path, asked
        self.end: Observation | None = None
        self.size = 0
        self._file = KeptFile(path, flags)
        self._position = 0
        self._offsets: list[int] = []
        self._places: list[tuple[int, int, int]] = []  # position in the file, stream, length
        self._lost = 0  # bytes that could not be kept
        self._followers = Followers()

    @classmethod
    def load(cls, path: Path) -> Journal:
        """One of an earlier node, up to its last whole frame. Raises ValueError where not even the header is whole."""
        raw = path.read_bytes()
        frames = list(_frames(raw))
        if not frames or frames[0][0] != b"H":
            raise ValueError(f"{path} is no command's journal")
        journal = cls.__new__(cls)
        journal._begin(path, os.O_RDWR, msgspec.msgpack.decode(frames[0][2], type=Asked))
        for kind, position, body in frames:
            if kind in (b"1", b"2"):
                journal._note(position, int(kind), len(body))
            elif kind == b"E":
                journal.end = msgspec.msgpack.decode(body, type=Observation)
            journal._position = position + len(body)
        os.ftruncate(journal._file.fd(), journal._position)
        return journal

    def write(self, stream: int, data: bytes) -> None:
        """Appends output; stream is 1 or 2. What cannot be kept is counted, in the end's truncated_bytes."""
        if self._file.closed or self.end is not None:
            return
        try:
            if not self._extend(stream, data):
                if len(self._places) >= MOST_FRAMES:
                    raise OSError(errno.ENOSPC, "the streams alternate too often")
                self._note(self._append(b"%d" % stream, data), stream, len(data))
        except OSError:
            self._lost += len(data)
        else:
            self._followers.wake()

    def _extend(self, stream: int, data: bytes) -> bool:
        """Adds to the last frame where it is of this stream and small: a byte at a time must not become a frame each.
        The length is written after the bytes, so that a crash leaves the frame as it was."""
        if not self._places:
            return False
        position, last, length = self._places[-1]
        if last != stream or length + len(data) > PART:
            return False
        _write_all(self._file.fd(), data, self._position)
        _write_all(self._file.fd(), _HEAD.pack(b"%d" % stream, length + len(data)), position - _HEAD.size)
        self._places[-1] = position, stream, length + len(data)
        self._position += len(data)
        self.size += len(data)
        return True

    def finish(self, end: Observation) -> None:
        """How it ended; the bytes in `end` are not kept again."""
        if not self._file.closed and self.end is None:
            truncated = end.truncated_bytes + self._lost
            self.end = msgspec.structs.replace(end, stdout=b"", stderr=b"", truncated_bytes=truncated)
            with contextlib.suppress(OSError):  # a full disk: this node knows it, the next one will say "lost"
                self._append(b"E", msgspec.msgpack.encode(self.end))
            self._followers.wake()

    async def observation(self) -> Observation:
        """The end with its bytes. Only after `finish`. Read in a thread, by a descriptor of its own: the box may be
        deleted meanwhile."""
        assert self.end is not None
        if not self.size or self._file.closed:
            return self.end
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        places = tuple(self._places)
        parts = await asyncio.to_thread(_read_all, fd, places)
        return msgspec.structs.replace(self.end, stdout=parts[1], stderr=parts[2])

    def read(self, offset: int) -> Part | None:
        """The next piece from offset on, at most PART bytes; None where there is none yet."""
        if self._file.closed or not 0 <= offset < self.size:
            return None
        number = bisect_right(self._offsets, offset) - 1
        position, stream, length = self._places[number]
        skip = offset - self._offsets[number]
        return Part(offset, stream, os.pread(self._file.fd(), min(PART, length - skip), position + skip))

    async def follow(self, offset: int) -> AsyncIterator[Part]:
        """Every piece from offset on, until the command has ended or the journal is closed."""
        while True:
            while part := self.read(offset):
                yield part
                offset += len(part.data)
            if self.end is not None or self._file.closed:
                return
            await self._followers.wait()

    def close(self, *, remove: bool) -> None:
        """Ends every follower."""
        self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)
        self._followers.wake()

    def _append(self, kind: bytes, body: bytes) -> int:
        """Where the body begins in the file. One write: a crash leaves whole frames, or one torn at the end."""
        _write_all(self._file.fd(), _HEAD.pack(kind, len(body)) + body, self._position)
        place = self._position + _HEAD.size
        self._position = place + len(body)
        return place

    def _note(self, position: int, stream: int, length: int) -> None:
        self._offsets.append(self.size)
        self._places.append((position, stream, length))
        self.size += length


def _write_all(fd: int, data: bytes, position: int) -> None:
    """Raises OSError where not all of it was written; what stands after the last whole frame is written over."""
    if os.pwrite(fd, data, position) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_all(fd: int, places: Iterable[tuple[int, int, int]]) -> dict[int, bytes]:
    """By stream, all that it printed; closes `fd`."""
    parts: dict[int, list[bytes]] = {1: [], 2: []}
    with open(fd, "rb", buffering=0) as file:
        for position, stream, length in places:
            parts[stream].append(os.pread(file.fileno(), length, position))
    return {stream: b"".join(found) for stream, found in parts.items()}


def _frames(raw: bytes) -> list[tuple[bytes, int, bytes]]:
    """(kind, where the body begins, body) of every whole frame."""
    found = []
    position = 0
    while position + _HEAD.size <= len(raw):
        kind, length = _HEAD.unpack_from(raw, position)
        position += _HEAD.size
        if position + length > len(raw):
            break
        found.append((kind, position, raw[position : position + length]))
        position += length
    return found
