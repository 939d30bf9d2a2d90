"""A port of a sandbox, on this host.

In: a sandbox, its port, a place to listen at. Out: each connection to that place carried to the sandbox's loopback, a
half that ends closed there as well. Leaves entering the sandbox's network to the node (network_methods.py): the bytes
go there as parts of a call, and so would to a node on another host.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, NamedTuple

from rockroll.errors import PeerLost, RockrollError, SandboxLost, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.linux.streams import Streams, streams

if TYPE_CHECKING:
    from rockroll.sandbox.client_link import Link

_log = logging.getLogger(__name__)


class Address(NamedTuple):
    """Where a forward listens; as a string, HOST:PORT."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Forward:
    """Made by `Sandbox.forward`. Listens inside `async with`; at its end connections under way are broken off."""

    def __init__(
        self,
        sandbox: Link,
        port: int,
        *,
        local: int = 0,
        address: str = "127.0.0.1",
        on_error: Callable[[RockrollError], None] | None = None,
    ) -> None:
        if not 1 <= port <= 65535 or not 0 <= local <= 65535:
            raise UsageError(f"forward: a port is from 1 to 65535, and a local one 0 for any; got {local}:{port}")
        self._sandbox, self._port = sandbox, port
        self._local, self._host = local, address
        self._on_error = on_error or _warn
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Address:
        _ = self._sandbox.id  # SandboxError before its start
        place, listening = self._listen()
        listening.setblocking(False)
        self._spawn(self._accept(listening), listening)
        return place

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _listen(self) -> tuple[Address, socket.socket]:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            listening = socket.create_server((self._host, self._local), family=family, backlog=512)
        except (OSError, UnicodeError) as error:
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise UsageError(
                f"forward: {self._host} port {self._local} cannot be listened at ({why}); choose another with"
                " LOCAL:REMOTE, or 0 for any"
            ) from None
        return Address(*listening.getsockname()[:2]), listening

    def _spawn(self, work: Coroutine[None, None, None], sock: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: sock.close())

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listening)
            self._spawn(self._serve(connection), connection)

    async def _serve(self, connection: socket.socket) -> None:
        # An end by an error is to be seen as one: a reset, not an empty answer.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            async with streams(connection) as outside:
                await self._carry(outside)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        except RockrollError as error:
            self._on_error(error)
        except OSError:
            pass  # whoever connected has gone

    async def _carry(self, outside: Streams) -> None:
        node = await self._sandbox._connected()
        body = wire.Connect(id=self._sandbox.id, port=self._port)
        try:
            stream = node.stream("port.connect", body, type=bytes, parts=_parts(outside))
            async with contextlib.aclosing(stream) as items:
                await anext(items)
                async for data in items:
                    if data:
                        await outside.write(data)
                    else:
                        outside.end()
        except PeerLost as error:
            raise SandboxLost(f"the node died while a port was forwarded: {error}", cause="node_lost") from None


async def _parts(outside: Streams) -> AsyncIterator[bytes]:
    while data := await outside.read():
        yield data


def _warn(error: RockrollError) -> None:
    _log.warning("forward: %s", error)
