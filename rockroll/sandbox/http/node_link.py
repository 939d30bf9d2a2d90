"""The HTTP server's way to the node: the same small interface as an rpc.Client, and it comes back after a node's death.

In: methods of wire/ and their bodies. Out: replies, streams, RockrollErrors; PeerLost for the calls that were under
way when the node died. Leaves starting a node to node_client.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from rockroll import rpc
from rockroll.sandbox.cluster.client import HubNode
from rockroll.sandbox.node_client import close_node, connect_here, new_connection


class NodeLink:
    """`call` and `stream` as of rpc.Client. Belongs to one event loop."""

    async def call(
        self, method: str, body: Any = None, *, type: Any = Any, parts: AsyncIterator[Any] | None = None
    ) -> Any:
        return await (await connect_here()).call(method, body, type=type, parts=parts)

    async def stream(
        self, method: str, body: Any = None, *, type: Any = Any, parts: AsyncIterator[Any] | None = None
    ) -> AsyncGenerator[Any, None]:
        items = (await connect_here()).stream(method, body, type=type, parts=parts)
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()

    async def private(self) -> rpc.Client | HubNode:
        """A connection of its own: the boxes that it owns go when it is closed."""
        return await new_connection()

    async def close(self) -> None:
        await close_node()
