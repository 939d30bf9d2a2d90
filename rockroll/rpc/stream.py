"""A link over a unix stream socket: four bytes of length, then the frame.

In: frames to send, bytes as they arrive. Out: whole frames to a callback, and the end of the link, at once, when the
other side dies. Leaves what frames mean to server.py and client.py.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import cast

from rockroll.rpc.frame import MAX_MESSAGE, check_size

_log = logging.getLogger(__name__)
_LENGTH = struct.Struct(">I")


RECEIVE = 256 << 10
"""Bytes taken from the socket at a time, while it is not known how long the frame is."""
SEND_AHEAD = 2 << 20
"""Bytes that a sender may be ahead of the socket before `drain` holds it: a large part or two."""


class Stream(asyncio.BufferedProtocol):
    """Small frames are cut from one buffer that is used again and again; a frame that does not fit gets a buffer of
    its own, which the socket fills: its bytes are copied once on their way from the kernel."""

    def __init__(self, on_frame: Callable[[bytes | bytearray], None], on_lost: Callable[[], None]) -> None:
        self._on_frame, self._on_lost = on_frame, on_lost
        self._buffer = bytearray(RECEIVE)
        self._filled = 0
        self._large: bytearray | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses
        self.transport.set_write_buffer_limits(high=SEND_AHEAD)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer if self._large is None else self._large)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if (large := self._large) is not None:
            if self._filled == len(large):
                self._large, self._filled = None, 0
                self._on_frame(large)
            return
        buffer, start, end = self._buffer, 0, self._filled
        while end - start >= 4:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if size > MAX_MESSAGE:
                _log.error("rpc: a message of %d bytes is over the limit of %d; closing the link", size, MAX_MESSAGE)
                assert self.transport is not None
                self.transport.abort()
                return
            start += 4
            if size > end - start:
                if size > RECEIVE - 4:
                    self._large = bytearray(size)
                    self._large[: end - start] = memoryview(buffer)[start:end]
                    self._filled = end - start
                    return
                start -= 4
                break
            data = bytes(memoryview(buffer)[start : start + size])
            start += size
            self._on_frame(data)
        if start:
            buffer[: end - start] = buffer[start:end]
        self._filled = end - start

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._on_lost()

    def send(self, data: bytes) -> None:
        assert self.transport is not None
        check_size(data)
        if len(data) < RECEIVE:
            self.transport.write(_LENGTH.pack(len(data)) + data)
        else:
            self.transport.write(_LENGTH.pack(len(data)))  # not joined: that would copy the frame once more
            self.transport.write(data)

    async def drain(self) -> None:
        await self._writable.wait()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class AcceptedStream(Stream):
    def __init__(
        self, on_frame: Callable[[bytes | bytearray], None], on_lost: Callable[[], None], on_made: Callable[[], None]
    ) -> None:
        super().__init__(on_frame, on_lost)
        self._on_made = on_made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._on_made()


def answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
