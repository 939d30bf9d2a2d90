"""Leases: whose end deletes sandboxes. A lease is an answer that does not end: who asked for it holds it by reading on.

In: a held request. Out: a lease's id, and calls that own what they make. Leaves deleting to the node: each lease has a
connection to it of its own, and a `connection` box goes when the connection that made it ends.

    POST /v1/leases ──► {"lease": ID}, then an empty line now and then ──► the caller hangs up or dies, or this server
                                                                            ends ──► its sandboxes are deleted
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator

import msgspec

from rockroll import rpc
from rockroll.errors import PeerLost, RockrollError, SandboxNotFound, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.cluster.client import HubNode
from rockroll.sandbox.http.node_link import NodeLink
from rockroll.sandbox.http.routes import Held

BEAT_S = 20.0
"""An empty line goes out this often, so that proxies do not hang up, and so that both sides notice a dead one."""
_log = logging.getLogger(__name__)


class Lease:
    """One of them. A node that died is followed by another, from which the sandboxes are claimed again."""

    def __init__(self, link: NodeLink, client: rpc.Client | HubNode) -> None:
        self.id = secrets.token_hex(16)
        self._link, self._client = link, client
        self._boxes: set[str] = set()
        self._lock = asyncio.Lock()

    async def make(self, method: str, body: wire.Struct) -> wire.SandboxInfo:
        """A sandbox that ends with this lease."""
        client = await self._connected()
        info = await client.call(method, body, type=wire.SandboxInfo)
        self._boxes.add(info.id)
        return info

    async def _connected(self) -> rpc.Client | HubNode:
        async with self._lock:
            if self._client.closed is not None:
                self._client = await self._link.private()
                for id in list(self._boxes):
                    try:
                        await self._client.call("sandbox.claim", wire.Ref(id=id))
                    except SandboxNotFound:
                        self._boxes.discard(id)
            return self._client

    async def end(self) -> None:
        """Its sandboxes go, one by one: a connection that is merely closed tells nothing to a node that has just died,
        and the next one would keep them for as long as this server lives."""
        try:
            while self._boxes:
                client = await self._connected()
                try:
                    await asyncio.gather(*(self._abandon(client, id) for id in list(self._boxes)))
                except PeerLost:
                    if client.closed is None:  # a hub that has lost a node: its warden ends what is there
                        raise
        except RockrollError as error:
            _log.error("the sandboxes of a lease that ended stay until this server ends: %s", error)
        finally:
            await self._client.close()

    async def _abandon(self, client: rpc.Client | HubNode, id: str) -> None:
        with contextlib.suppress(SandboxNotFound):
            await client.call("sandbox.abandon", wire.Ref(id=id))
        self._boxes.discard(id)


class Leases:
    """Those that are held."""

    def __init__(self, link: NodeLink) -> None:
        self._link = link
        self._held: dict[str, Lease] = {}

    def get(self, id: str) -> Lease:
        if lease := self._held.get(id):
            return lease
        raise UsageError("no lease has that id now: hold one with POST /v1/leases, and read on as long as you need it")

    async def hold(self) -> AsyncGenerator[bytes, None]:
        """Lines to send; the lease ends when the generator is closed."""
        lease = Lease(self._link, await self._link.private())
        self._held[lease.id] = lease
        try:
            yield msgspec.json.encode(Held(lease.id)) + b"\n"
            while True:
                await asyncio.sleep(BEAT_S)
                yield b"\n"
        finally:
            del self._held[lease.id]
            await asyncio.shield(asyncio.ensure_future(lease.end()))
