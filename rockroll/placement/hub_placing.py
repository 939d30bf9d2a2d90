"""The hub's part for clients: who the nodes are, which one a box is placed on, which one holds it.

In: the scheduler, the nodes' trunks, when each was heard. Out: answers to `cluster.…`. Leaves the choice to
sandbox/cluster/scheduler.py, and who is there to hub.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from rockroll import rpc
from rockroll.errors import SandboxNotFound, UsageError
from rockroll.sandbox.cluster import wire
from rockroll.sandbox.cluster.scheduler import Node, Scheduler
from rockroll.sandbox.wire import Empty

SETTLE_S = 5.0
"""The nodes of a hub before this one have joined again by then."""


class HubPlacing:
    """trunks: by node. heard: when each trunk was, on this loop's clock. changes: told of a node that is drained, or
    is no more; `notify` of every other change."""

    def __init__(
        self,
        scheduler: Scheduler,
        trunks: Mapping[str, bytes],
        heard: Mapping[bytes, float],
        changes: Callable[[], None],
    ) -> None:
        self._scheduler, self._trunks, self._heard, self._changes = scheduler, trunks, heard, changes
        self.drained: set[str] = set()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._settled = self._loop.time() + SETTLE_S

    def handlers(self) -> dict[str, rpc.Handler]:
        return {
            "cluster.watch": self._watch,
            "cluster.nodes": self._nodes,
            "cluster.place": self._place,
            "cluster.settle": self._settle,
            "cluster.where": self._where,
            "cluster.drain": self._drain,
        }

    def notify(self) -> None:
        """A node has come or gone, or is in another state."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _view(self, node: Node) -> wire.NodeView:
        trunk = self._trunks[node.name]
        return wire.NodeView(
            name=node.name,
            trunk=trunk,
            state=node.state,
            boxes=node.boxes,
            cpus=node.most[0],
            cpus_granted=node.used[0],
            memory=int(node.most[1]),
            memory_granted=int(node.used[1]),
            room=node.load.room,
            silent_s=self._loop.time() - self._heard.get(trunk, 0.0),
        )

    async def _nodes(self, _body: Empty, _peer: rpc.Peer) -> list[wire.NodeView]:
        return [self._view(node) for _, node in sorted(self._scheduler.nodes.items())]

    async def _watch(self, body: Empty, peer: rpc.Peer) -> AsyncIterator[list[wire.NodeView]]:
        while True:
            changed = self._changed  # taken before the yield: a change during it is not missed
            yield await self._nodes(body, peer)
            await changed.wait()

    async def _place(self, want: wire.Want, _peer: rpc.Peer) -> wire.Placed:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._settled):  # nodes of the hub before this one are about to join
                while not self._scheduler.nodes:
                    await self._changed.wait()
        if not want.wait:
            return self._placed(*self._scheduler.place(want))
        there: asyncio.Future[tuple[Node, int]] = self._loop.create_future()
        ask = self._scheduler.ask(want, lambda node, ticket: there.set_result((node, ticket)))
        try:
            return self._placed(*await there)
        except asyncio.CancelledError:
            self._scheduler.drop(ask)
            if there.done() and not there.cancelled():
                self._scheduler.settle(there.result()[1])
            raise

    def _placed(self, node: Node, ticket: int) -> wire.Placed:
        return wire.Placed(node=node.name, trunk=self._trunks[node.name], ticket=ticket)

    async def _settle(self, body: wire.Settle, _peer: rpc.Peer) -> None:
        self._scheduler.settle(body.ticket)

    async def _where(self, body: wire.Where, _peer: rpc.Peer) -> wire.Placed:
        name = self._scheduler.where(body.id)
        if name is None:
            raise SandboxNotFound(
                f"no sandbox {body.id!r} in this cluster; `rockroll sandbox ls` lists those there are"
            )
        return wire.Placed(node=name, trunk=self._trunks[name])

    async def _drain(self, body: wire.Drain, _peer: rpc.Peer) -> None:
        node = self._scheduler.nodes.get(body.node)
        if node is None:
            there = ", ".join(sorted(self._scheduler.nodes)) or "none"
            raise UsageError(f"no node {body.node!r} in this cluster; there are: {there}")
        (self.drained.add if body.on else self.drained.discard)(body.node)
        if node.state != "suspect":
            self._scheduler.mark(body.node, "draining" if body.on else "up")
        self._changes()
