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

from rockroll.errors import RockrollError
from rockroll.rpc.frame import MAX_MESSAGE

_log = logging.getLogger(__name__)


class Stream(asyncio.Protocol):
    def __init__(self, on_frame: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._on_frame, self._on_lost = on_frame, on_lost
        self._buffer = bytearray()
        self._writable = asyncio.Event()
        self._writable.set()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            (size,) = struct.unpack_from(">I", buffer, start)
            if size > MAX_MESSAGE:
                _log.error("rpc: a message of %d bytes is over the limit of %d; closing the link", size, MAX_MESSAGE)
                assert self.transport is not None
                self.transport.abort()
                return
            if len(buffer) - start - 4 < size:
                break
            frame = bytes(memoryview(buffer)[start + 4 : start + 4 + size])
            start += 4 + size
            self._on_frame(frame)
        del buffer[:start]

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._on_lost()

    def send(self, data: bytes) -> None:
        assert self.transport is not None
        if len(data) > MAX_MESSAGE:
            raise RockrollError(f"a message may have {MAX_MESSAGE} bytes, this one has {len(data)}; send it in parts")
        self.transport.write(struct.pack(">I", len(data)) + data)

    async def drain(self) -> None:
        await self._writable.wait()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class AcceptedStream(Stream):
    def __init__(
        self, on_frame: Callable[[bytes], None], on_lost: Callable[[], None], on_made: Callable[[], None]
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
