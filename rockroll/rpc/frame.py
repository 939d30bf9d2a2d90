"""What travels on a link: one msgpack array (kind, id, method, body).

In: plain msgpack values or Structs. Out: bytes, and back. Leaves sending them to the links.

    CALL ──► REPLY | ERROR          a coroutine handler
    CALL ──► CHUNK* ──► END | ERROR an async generator handler
    CANCEL                          the caller lost interest; the handler's task is cancelled, nothing comes back
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

MAX_MESSAGE = 256 * 2**20
"""Bytes of one frame, at most."""
CALL, REPLY, CHUNK, END, ERROR, CANCEL = range(1, 7)


class Frame(msgspec.Struct, array_like=True):
    """One message. `body` is msgpack inside msgpack: it is decoded by whoever knows its type."""

    kind: int
    id: int
    method: str = ""
    body: msgspec.Raw = msgspec.Raw(b"\xc0")


class Failure(msgspec.Struct):
    """The body of an ERROR: a RockrollError by its class name."""

    name: str
    message: str
    fields: dict[str, Any]


class Link(Protocol):
    """One way to bring frames to the other side."""

    def send(self, data: bytes) -> None:
        """Queues a frame. Frames arrive in order, or the link ends."""
        ...

    async def drain(self) -> None:
        """Waits until what was sent has left, or nearly: how a fast sender is held back."""
        ...


_encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Frame).decode


def frame(kind: int, call_id: int, method: str = "", body: Any = None) -> bytes:
    """The bytes of one frame."""
    return _encode(Frame(kind, call_id, method, msgspec.Raw(_encode(body))))
