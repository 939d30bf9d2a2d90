"""What travels on a link: one msgpack array (kind, id, method, body).

In: plain msgpack values or Structs. Out: bytes, and back. Leaves sending them to the links.

    CALL ──► REPLY | ERROR          a coroutine handler
    CALL ──► CHUNK* ──► END | ERROR an async generator handler
    OPEN ──► PART* ──► LAST         a call whose body is followed by parts, at any time; answered as a CALL is
    HELLO                           either way, before all else: id is the sender's WIRE version, method its rockroll's
    CANCEL                          the caller lost interest; the handler's task is cancelled, nothing comes back
    MORE                            either way: so many chunks or parts of this call were taken, send as many more

Whoever sends chunks or parts has at most WINDOW of them on the way: a slow taker holds its sender and nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Protocol

import msgspec

from rockroll.errors import RockrollError
from rockroll.release import VERSION

MAX_MESSAGE = 256 * 2**20
"""Bytes of one frame, at most."""
CALL, REPLY, CHUNK, END, ERROR, CANCEL, OPEN, PART, LAST, MORE, HELLO = range(1, 12)
WIRE = 1
"""The version of all that processes say to each other: it changes where an older reader would misunderstand."""
WINDOW = 16
"""Chunks or parts of one call under way: sent, and not yet asked for by who takes them."""
ASK_AT = WINDOW // 2
"""Taken ones that are worth a MORE."""


class Frame(msgspec.Struct, array_like=True):
    """One message. `body` is msgpack inside msgpack: it is decoded by whoever knows its type."""

    kind: int
    id: Annotated[int, msgspec.Meta(ge=0)]
    method: Annotated[str, msgspec.Meta(max_length=128)] = ""
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


class Credit:
    """How many chunks or parts its owner may still send: `await take()` before each."""

    def __init__(self) -> None:
        self._left = WINDOW
        self._some = asyncio.Event()
        self._some.set()

    async def take(self) -> None:
        await self._some.wait()
        self._left -= 1
        if self._left <= 0:
            self._some.clear()

    def add(self, count: int) -> None:
        self._left += count
        if self._left > 0:
            self._some.set()


class Inbox:
    """Chunks or parts that came and were not taken yet. `more(n)` is called when n more may be sent."""

    def __init__(self, more: Callable[[int], None]) -> None:
        self._queue: asyncio.Queue[msgspec.Raw | None] = asyncio.Queue()
        self._more, self._taken = more, 0

    def put(self, body: msgspec.Raw | None) -> None:
        """None: there will be no other."""
        self._queue.put_nowait(body)

    async def get(self) -> msgspec.Raw | None:
        body = await self._queue.get()
        self._taken += body is not None
        if self._taken >= ASK_AT:
            self._more(self._taken)
            self._taken = 0
        return body


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Frame)
_count = msgspec.msgpack.Decoder(Annotated[int, msgspec.Meta(ge=0, le=2**31)])


def frame(kind: int, call_id: int, method: str = "", body: Any = None) -> bytes:
    """The bytes of one frame. A large binary in the body is copied once."""
    return _encode((kind, call_id, method, body))


def check_size(data: bytes) -> None:
    """RockrollError for a frame that no link carries."""
    if len(data) > MAX_MESSAGE:
        raise RockrollError(f"a message may have {MAX_MESSAGE} bytes, this one has {len(data)}; send it in parts")


def hello() -> bytes:
    return frame(HELLO, WIRE, VERSION)


def misfit(version: int, release: str) -> str | None:
    """Why this process cannot talk with one of that wire version; None: it can."""
    if version == WIRE:
        return None
    told = f"wire version {version} (rockroll {release})" if version else "no wire version that it would tell"
    return (
        f"this process speaks wire version {WIRE} (rockroll {VERSION}) and the other {told}; both need the same "
        "rockroll: install it on both sides and start both again"
    )


UNREADABLE = (msgspec.MsgspecError, RecursionError, ValueError)
"""What msgspec raises for bytes that are no frame, or no body of the type that is needed."""


def decode(data: bytes | bytearray) -> Frame:
    """Back again. The body is a view of `data`. Raises one of UNREADABLE."""
    return _decoder.decode(data)


def decode_count(body: msgspec.Raw) -> int:
    """The body of a MORE. Raises one of UNREADABLE."""
    return _count.decode(body)
