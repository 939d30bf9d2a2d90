"""Records in a file that only grows: length, checksum, body.

In: bodies. Out: the bytes to append, and the bodies again; what a death left torn at the end is left out. Leaves
what a body says to journal.py and ledger.py.

A record is 4 bytes of length, 4 of CRC-32 (both little-endian), and the body. The file begins with its kind's magic.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from rockroll.errors import HostError, UsageError

_HEAD = struct.Struct("<II")


def pack(body: bytes) -> bytes:
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def unpack(path: Path, magic: bytes, kind: str) -> Iterator[bytes]:
    """The bodies of one file, in their order.

    UsageError for what is no file of that kind, HostError for one that was damaged before its end.
    """
    data = path.read_bytes()
    if not data.startswith(magic):
        if magic.startswith(data):
            return  # it died before it had written anything
        raise UsageError(f"{path} is no {kind} of rockroll's: it begins with {data[: len(magic)]!r}")
    at, view = len(magic), memoryview(data)
    while at + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, at)
        begin, end = at + _HEAD.size, at + _HEAD.size + length
        body = data[begin:end]
        if end > len(data) or not any(view[at:]):
            return  # torn: or the zeros of a file whose size reached the disk before its content
        if zlib.crc32(body) != checksum:
            if end == len(data) or not any(view[end:]):
                return
            raise HostError(f"{path} is damaged at byte {at}: a record there does not have its checksum")
        yield body
        at = end
