"""Which processes beyond a hub are gone for good: their connections ended and did not return, or they fell silent.

In: names of trunks. Out: at the hub, an answer for who asks after one, when it is gone; at a trunk, the asking. Leaves
who counts as gone to the hub, and what follows from it to who asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from rockroll.errors import PeerLost
from rockroll.rpc.client import Client
from rockroll.rpc.trunk import HUB, Trunk

GONE = "trunk.gone"
"""The name of a trunk → nothing, when it is gone."""


class Notices:
    """The hub's half. is_gone: whether it knows one to be. expect: told of one that somebody asks after, which may have
    gone before this hub was there."""

    def __init__(self, is_gone: Callable[[bytes], bool], expect: Callable[[bytes], None]) -> None:
        self._is_gone, self._expect = is_gone, expect
        self._waiting: dict[bytes, set[asyncio.Future[None]]] = {}

    async def wait(self, name: bytes, _peer: object = None) -> None:
        """The handler of GONE."""
        if self._is_gone(name):
            return
        self._expect(name)
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(name, set())
        waiting.add(told)
        try:
            await told
        finally:
            waiting.discard(told)
            if not waiting and self._waiting.get(name) is waiting:
                del self._waiting[name]

    def tell(self, names: Iterable[bytes]) -> None:
        """These are gone."""
        for name in names:
            for told in self._waiting.get(name, ()):
                if not told.done():
                    told.set_result(None)


class Departures:
    """A trunk's half."""

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk
        self._hub: Client | None = None

    async def of(self, name: bytes) -> None:
        """Returns when that one is gone. A hub that is started anew is asked again. RockrollError where it cannot
        tell."""
        while True:
            if self._hub is None or self._hub.closed is not None:
                self._hub = self._dialled()
            try:
                return await self._hub.call(GONE, name)
            except PeerLost:
                continue

    def _dialled(self) -> Client:
        line = self._trunk.line(
            HUB, lambda data: made.hear(data), lambda: made.fail(PeerLost("the hub was started anew"))
        )
        made = Client.over("the hub", line, lambda: None)
        return made
