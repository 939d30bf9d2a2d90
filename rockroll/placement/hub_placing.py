"""The hub's part for clients: who the nodes are, which one a box is placed on, which one holds it.

In: the scheduler, the nodes' trunks, when each was heard, which ones a hub before this one had. Out: answers to
`cluster.…`; what needs a node that is on its way back waits for it. Leaves the choice to sandbox/cluster/scheduler.py,
and who is there to hub.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from rockroll import rpc
from rockroll.errors import NoRoom, SandboxNotFound, UsageError
from rockroll.placement.hub_roster import Roster
from rockroll.sandbox.cluster import wire
from rockroll.sandbox.cluster.scheduler import Node, Scheduler
from rockroll.sandbox.wire import Empty

FIRST_S = 5.0
"""The first node of a new cluster may be about to join."""


class HubPlacing:
    """trunks: by node. heard: when each trunk was, on this loop's clock. roster: with the nodes that are waited for.
    changes: told of a node that is drained, or is no more; `notify` of every other change."""

    def __init__(
        self,
        scheduler: Scheduler,
        trunks: Mapping[str, bytes],
        heard: Mapping[bytes, float],
        roster: Roster,
        changes: Callable[[], None],
    ) -> None:
        self._scheduler, self._trunks, self._heard, self._roster = scheduler, trunks, heard, roster
        self._changes = changes
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._first = self._loop.time() + FIRST_S

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
        views = [self._view(node) for node in self._scheduler.nodes.values()]
        if not self._roster.settled:
            missing = self._roster.missing.items()
            views += [wire.NodeView(name=name, trunk=trunk, state="returning") for name, trunk in missing]
        return sorted(views, key=lambda view: view.name)

    async def _watch(self, body: Empty, peer: rpc.Peer) -> AsyncIterator[list[wire.NodeView]]:
        while True:
            changed = self._changed  # taken before the yield: a change during it is not missed
            yield await self._nodes(body, peer)
            await self._news(changed)

    async def _news(self, changed: asyncio.Event) -> None:
        """A change of the nodes has come, or those that are waited for are not waited for any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if self._roster.settled else self._roster.left_s):
                await changed.wait()

    async def _settled(self) -> None:
        """No node is on its way back."""
        while not self._roster.settled:
            await self._news(self._changed)

    async def _place(self, want: wire.Want, _peer: rpc.Peer) -> wire.Placed:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._first):
                while not self._scheduler.nodes and not self._roster.missing:
                    await self._changed.wait()
        if not want.wait:
            try:
                return self._placed(*self._scheduler.place(want))
            except NoRoom:
                if self._roster.settled:
                    raise
        there: asyncio.Future[tuple[Node, int]] = self._loop.create_future()
        ask = self._scheduler.ask(want, lambda node, ticket: there.set_result((node, ticket)))
        settled = None if want.wait else asyncio.ensure_future(self._settled())
        try:
            await asyncio.wait({there, settled} if settled else {there}, return_when=asyncio.FIRST_COMPLETED)
            if there.done():
                return self._placed(*there.result())
        except asyncio.CancelledError:
            if there.done():
                self._scheduler.settle(there.result()[1])
            raise
        finally:
            self._scheduler.drop(ask)
            if settled is not None:
                settled.cancel()
        return self._refused(want)

    def _refused(self, want: wire.Want) -> wire.Placed:
        """As one that does not wait, now that nobody is on its way back."""
        try:
            return self._placed(*self._scheduler.place(want))
        except NoRoom as error:
            if not self._roster.missing:
                raise
            away = ", ".join(sorted(self._roster.missing))
            said = f"{error.message}; of the nodes before the hub was started anew, these are not back: {away}"
            raise NoRoom(said) from None

    def _placed(self, node: Node, ticket: int) -> wire.Placed:
        return wire.Placed(node=node.name, trunk=self._trunks[node.name], ticket=ticket)

    async def _settle(self, body: wire.Settle, _peer: rpc.Peer) -> None:
        self._scheduler.settle(body.ticket)

    async def _where(self, body: wire.Where, _peer: rpc.Peer) -> wire.Placed:
        while (name := self._scheduler.where(body.id)) is None and not self._roster.settled:
            await self._news(self._changed)
        if name is None:
            raise SandboxNotFound(
                f"no sandbox {body.id!r} in this cluster; `rockroll sandbox ls` lists those there are"
            )
        return wire.Placed(node=name, trunk=self._trunks[name])

    async def _drain(self, body: wire.Drain, _peer: rpc.Peer) -> None:
        node = self._scheduler.nodes.get(body.node)
        if node is None and body.node not in self._roster.missing:
            there = ", ".join(sorted(self._scheduler.nodes)) or "none"
            raise UsageError(f"no node {body.node!r} in this cluster; there are: {there}")
        self._roster.drain(body.node, body.on)
        if node is not None and node.state != "suspect":
            self._scheduler.mark(body.node, "draining" if body.on else "up")
        self._changes()
