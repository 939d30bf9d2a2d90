"""Parts of a call on an HTTP body, as the Python SDK sends and takes them: four bytes of length, then msgpack.

In: parts (of a tree, tree.py; of a connection), or pieces of a body. Out: the other. Leaves tar, which other clients
speak, to tar.py.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec

from rockroll.errors import UsageError

PARTS = "application/vnd.rockroll.parts"
NOTHING = bytes(4)
"""No part: a sender whose first part is yet to come opens its body with it."""
MOST = 8 << 20
"""Bytes of one part, at most: sixteen times what is usual."""
_LENGTH = struct.Struct(">I")


def framed(part: Any) -> bytes:
    data = msgspec.msgpack.encode(part)
    return _LENGTH.pack(len(data)) + data


async def unframed(pieces: AsyncIterator[bytes]) -> AsyncGenerator[msgspec.Raw, None]:
    """The parts, not decoded. UsageError for a body that ends within one, or has one that is too long."""
    waiting = bytearray()
    async for piece in pieces:
        waiting += piece
        start = 0
        while len(waiting) - start >= 4:
            (size,) = _LENGTH.unpack_from(waiting, start)
            if size > MOST:
                raise UsageError(f"a part has at most {MOST} bytes; got one of {size}")
            if len(waiting) - start - 4 < size:
                break
            if size:
                yield msgspec.Raw(bytes(memoryview(waiting)[start + 4 : start + 4 + size]))
            start += 4 + size
        if start:
            del waiting[:start]
    if waiting:
        raise UsageError("the body was cut off within a part")
