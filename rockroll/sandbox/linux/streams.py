"""A TCP connection as two ways of bytes, closed for certain.

In: a connected socket, or an address. Out: reads and writes that wait for the other side, counts of both, and an end of
each way of its own. Leaves what the bytes are to its callers: proxy.py and forward_methods.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

CHUNK = 128 << 10
"""Bytes read at a time, and about half of what waits in memory for a slow reader."""
CLOSE_S = 30.0
"""For what was written to leave, at the end."""


class Streams:
    """Both ways of one socket, and how much has gone over it. `moved` is called after each step."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.sent = self.received = 0
        self.moved: Callable[[], None] = lambda: None

    async def read(self) -> bytes:
        """b"" at the end."""
        data = await self.reader.read(CHUNK)
        self.received += len(data)
        self.moved()
        return data

    async def write(self, data: bytes) -> None:
        if data:
            self.writer.write(data)
            await self.writer.drain()
            self.sent += len(data)
            self.moved()

    def end(self) -> None:
        """Nothing more will be written; reading goes on."""
        with contextlib.suppress(OSError, RuntimeError):  # uvloop's word for a connection that is gone
            self.writer.write_eof()

    async def pump(self, sink: Streams) -> None:
        """What is read here is written there, up to and with the end."""
        while data := await self.read():
            await sink.write(data)
        sink.end()


@contextlib.asynccontextmanager
async def streams(sock: socket.socket, *, limit: int = CHUNK) -> AsyncIterator[Streams]:
    """The socket is theirs from now on. At the end what was written is sent and it is closed; after an error it is
    closed at once. limit: bytes of the longest line that is asked for."""
    loop = asyncio.get_running_loop()
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
    except BaseException:
        sock.close()
        raise
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    try:
        yield Streams(reader, writer)
        writer.close()
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()
    finally:
        transport.abort()


async def connect(sock: socket.socket, host: str, port: int) -> socket.socket:
    """The socket, connected; closed where that fails. Raises OSError."""
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock
