"""A client of a server that listens nowhere: both dial out to a hub.

In: an address hub://NAME@HOST:PORT/KEY. Out: a Client whose calls outlive breaks of the connection and of the hub.
Leaves who is gone for good to the hub.

    absent ──► a frame of the server's comes ──► there ──► the hub says that it is gone ──► absent: what was under way
       └── a call waits, as for any server that is away ──► PeerLost                        raises PeerLost
"""

from __future__ import annotations

import asyncio
import logging

from rockroll.errors import PeerLost, RockrollError
from rockroll.rpc.client import Client
from rockroll.rpc.departures import Departures
from rockroll.rpc.frame import hello
from rockroll.rpc.trunk import Trunk, parsed

_log = logging.getLogger(__name__)


class HubClient(Client):
    """Made by `rpc.connect`."""

    def __init__(self, address: str) -> None:
        self._name, hub, public = parsed(address)
        super().__init__(f"hub://{self._name.hex()}")  # errors name it, and the key is nobody's to read
        self._there = False
        self._trunk = Trunk(hub, public)
        self._departures = Departures(self._trunk)
        self._following: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._trunk.open(within=None)
        self._on_close = self._trunk.close
        self._dial()

    def _dial(self) -> None:
        self._greeted = False
        self._link = self._trunk.line(self._name, self._on_frame, self._given_up)
        self._link.send(hello())

    def _given_up(self) -> None:
        self._fail_pending(PeerLost(f"the process at {self.address} has ended, or has given this one up"))
        self._dial()

    def _on_frame(self, data: bytes | bytearray) -> None:
        if not self._there:
            self._there = self._was_there = True
            self._stop_waiting()
            self._following = asyncio.ensure_future(self._until_gone())
        super()._on_frame(data)

    async def _until_gone(self) -> None:
        try:
            await self._departures.of(self._name)
        except RockrollError as error:
            _log.warning("rpc: the end of %s would not be known: %s", self.address, error)
            return
        self._there = False
        self._fail_pending(PeerLost(f"the process at {self.address} is gone"))
        self._dial()  # on the line before, it would run what was given up here

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
        await super().close()
