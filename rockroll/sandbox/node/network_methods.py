"""The node's network methods: what a box has asked its proxy for, and connections to its ports.

In: rpc calls, and the boxes that they name. Out: replies, and the bytes of a connection both ways. Leaves the proxy to
egress.py, and listening on the host to the caller (forward.py), which may one day be on another host.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from rockroll import rpc
from rockroll.errors import SandboxError, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.boxes.box import Box
from rockroll.sandbox.linux import netns
from rockroll.sandbox.linux.streams import Streams, connect, streams

CONNECT_S = 10.0
"""A server in the box that accepts nothing lets its queue fill; then a connection waits."""


class NetworkMethods:
    """box: the box of an id, a prefix of one or a name; raises SandboxNotFound."""

    def __init__(self, box: Callable[[str], Box]) -> None:
        self._box = box

    def handlers(self) -> dict[str, Callable[..., Any]]:
        return {"sandbox.network": self._network, "port.connect": self._connect}

    async def _network(self, body: wire.Ref, _peer: rpc.Peer) -> wire.NetworkInfo:
        return self._box(body.id).egress.info()

    async def _connect(self, body: wire.Connect, _peer: rpc.Peer, parts: rpc.Parts) -> AsyncIterator[bytes]:
        if not 1 <= body.port <= 65535:
            raise UsageError(f"a port is from 1 to 65535; got {body.port}")
        box = self._box(body.id)
        box.status.need_rest()
        try:
            async with streams(await _connected(box, body.port)) as inside:
                yield b""
                sending = asyncio.ensure_future(_send(parts, inside))
                try:
                    while data := await inside.read():
                        yield data
                    yield b""
                    await sending
                finally:
                    sending.cancel()
                    await asyncio.wait((sending,))
        except OSError as error:
            said = error.strerror or str(error) or "nothing was taken any more"
            raise SandboxError(f"the connection to port {body.port} of sandbox {box.name} broke off: {said}") from None


async def _send(parts: rpc.Parts, inside: Streams) -> None:
    """A server that takes no more may still have something to say: that it reads no further is no error."""
    async for data in parts.of(bytes):
        with contextlib.suppress(OSError):
            await inside.write(data)
    inside.end()


async def _connected(box: Box, port: int) -> socket.socket:
    """To the box's loopback, IPv4 first. Raises SandboxError where nothing listens there."""
    said = ""
    sockets = await asyncio.to_thread(netns.sockets_in, box.init)
    with contextlib.ExitStack() as others:
        for sock in sockets:
            others.callback(sock.close)
        for sock in sockets:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await connect(sock, "127.0.0.1" if sock.family == socket.AF_INET else "::1", port)
                return sock.dup()
            except TimeoutError:
                said = f"what listens there accepted no connection for {CONNECT_S:g} s"
                break
            except OSError as error:
                quiet = error.errno in (errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.ENETUNREACH)
                said = "nothing listens there; start the server first" if quiet else str(error)
    raise SandboxError(f"port {port} of sandbox {box.name}: {said}")
