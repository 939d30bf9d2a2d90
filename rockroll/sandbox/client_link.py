"""Which node a `Sandbox` asks, and what the death of one means for it: the part of `Sandbox` under all others.

In: a method and its body. Out: the reply; SandboxLost where the node died meanwhile. After that the next call finds the
node that has the box now. Leaves connecting itself to node_client.py, and what is asked to client.py and the parts
beside it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rockroll.errors import PeerLost, SandboxError, SandboxLost, SandboxNotFound
from rockroll.sandbox import where, wire
from rockroll.sandbox.node_client import connect_to
from rockroll.sandbox.wire import Owner, SandboxInfo

if TYPE_CHECKING:
    from rockroll.sandbox.node_client import Node

T = TypeVar("T")


class Link:
    """The calls about one box; `_info` is what its node said last, None before the box was made."""

    def __init__(self, place: where.Place | None, owner: Owner, *, outlives_node: bool) -> None:
        self._place = place
        self._outlives_node = outlives_node
        self.owner: Owner = owner
        self._info: SandboxInfo | None = None
        self._node: Node | None = None
        self._attached = False

    @property
    def info(self) -> SandboxInfo:
        """What the node said last about this box; `refresh` asks again. SandboxError before the first `start`."""
        if self._info is None:
            raise SandboxError(
                "this sandbox was not started: use `async with Sandbox(...)`, or await its start() first"
            )
        return self._info

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def connected(self) -> bool:
        """Whether the link to the node still stands that was last used for this box."""
        return self._node is not None and self._node.closed is None

    async def ask(self, method: str, body: Any) -> Any:
        """A method of the node about this box that is not the sandbox room's own (placement adds `model.route`)."""
        return await self._call(method, body, cast(Any, Any))

    @property
    def _ref(self) -> wire.Ref:
        return wire.Ref(id=self.id)

    async def _connected(self) -> Node:
        if self._node is None:
            self._node = await connect_to(self._place)
        elif self._node.closed is not None:
            if not self._outlives_node:
                raise SandboxLost("the node that held this sandbox died; take another sandbox", cause="node_lost")
            try:
                self._node = await connect_to(self._place, self._info.node if self._info else None)
            except PeerLost as error:
                raise SandboxLost(f"sandbox {self.id} is out of reach: {error}", cause="node_lost") from error
            await self._claim(self._node)
        return self._node

    async def _narrow(self) -> None:
        """From now on its node is asked, and no longer the whole cluster."""
        if self._info is not None and isinstance(self._place, where.Hub):
            try:
                self._node = await connect_to(self._place, self._info.node)
            except PeerLost as error:
                raise SandboxLost(f"sandbox {self.id} is out of reach: {error}", cause="node_lost") from error

    async def _claim(self, node: Node) -> None:
        """A new node has taken this box over: it lives as long as this connection, as it did on the last one's."""
        if self.owner == "connection" and self._info is not None and not self._attached:
            try:
                await node.call("sandbox.claim", self._ref)
            except SandboxNotFound:
                return  # the call that comes next says so

    async def _call(
        self, method: str, body: Any, type: type[T] = object, *, parts: AsyncIterator[Any] | None = None
    ) -> T:
        node = await self._connected()
        try:
            return await node.call(method, body, type=type, parts=parts)
        except PeerLost as error:
            raise SandboxLost(f"the node died while {method} was under way: {error}", cause="node_lost") from error

    async def _call_all(self, method: str, body: Any, type: type[T]) -> T:
        """As _call, of the whole cluster where the box is in one: more than its node has a part in it."""
        node = await self._connected()
        if isinstance(self._place, where.Hub):
            node = await connect_to(self._place)
        try:
            return await node.call(method, body, type=type)
        except PeerLost as error:
            raise SandboxLost(f"a node died while {method} was under way: {error}", cause="node_lost") from error
