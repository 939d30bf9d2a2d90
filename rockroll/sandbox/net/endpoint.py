"""The socket that listens inside each box, for whoever the node has put behind it.

In: a box whose init runs, or has ended. Out: the node's hooks, called with the box's id and the listening socket.
Leaves the socket's making to netns.py, and what answers there to the node.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from socket import socket as Socket

from rockroll.sandbox.linux import netns


class Endpoint:
    """The node's hooks; without a port nothing is done."""

    def __init__(
        self,
        port: int | None = None,
        on_open: Callable[[str, Socket], Awaitable[None]] | None = None,
        on_gone: Callable[[str], None] | None = None,
    ) -> None:
        self.port, self._on_open, self._on_gone = port, on_open, on_gone

    async def open(self, sandbox_id: str, pid: int) -> None:
        if self.port is not None and self._on_open is not None:
            await self._on_open(sandbox_id, netns.listen_in(pid, self.port))

    def gone(self, sandbox_id: str) -> None:
        if self._on_gone is not None:
            self._on_gone(sandbox_id)
