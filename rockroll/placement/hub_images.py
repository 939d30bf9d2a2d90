"""The hub's part in bringing images to nodes: who gives which to whom.

In: nodes that lack an image, the scheduler's word on who has it. Out: a source for each, when one is free. Leaves who
is next to sandbox/cluster/sources.py, the bytes to the nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from rockroll import rpc
from rockroll.sandbox.cluster import wire
from rockroll.sandbox.cluster.scheduler import Scheduler
from rockroll.sandbox.cluster.sources import Sources, stores


class HubImages:
    """`look` is called when a node has come, has gone, or has told of its images."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._nodes = scheduler.nodes
        self._sources = Sources(lambda: stores((node.name, node.state, node.images) for node in self._nodes.values()))
        self.look = self._sources.look

    def handlers(self) -> dict[str, rpc.Handler]:
        return {"image.source": self._source, "image.got": self._got}

    async def _source(self, want: wire.ImageWant, _peer: rpc.Peer) -> AsyncIterator[wire.ImageSource]:
        """Open for as long as who asked is at it: it ends this call, or is gone."""
        there: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        ask = self._sources.ask(want, there.set_result)
        try:
            yield wire.ImageSource(node=await there)
            await asyncio.Event().wait()
        finally:
            self._sources.end(ask)

    async def _got(self, want: wire.ImageWant, _peer: rpc.Peer) -> None:
        if (node := self._nodes.get(want.node)) is not None:
            node.images.add(want.image)
            self.look()
