"""The node's methods for warm pools.

In: rpc calls; at the node's start, node.yaml and the pools that an earlier node had. Out: their replies. Leaves the
pools to warm.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from rockroll import rpc
from rockroll.errors import UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.node import pools_file
from rockroll.sandbox.node.maker import Maker
from rockroll.sandbox.node.node_config import PoolSpec

_log = logging.getLogger(__name__)


class PoolMethods:
    """Of a node whose maker comes with `fill`."""

    def __init__(self) -> None:
        self._maker: Maker

    def handlers(self) -> dict[str, Callable[..., Any]]:
        return {
            "pool.set": self._set,
            "pool.list": self._list,
            "pool.filled": self._filled,
            "pool.delete": self._delete,
        }

    def fill(self, maker: Maker) -> None:
        """The node serves from now on: its pools begin to fill. Raises UsageError for a wrong node.yaml."""
        self._maker = maker
        lasting = pools_file.load()
        _ = maker.permit.config
        for name, spec in lasting.items():
            try:
                maker.warm.set(name, spec, "detached")
            except UsageError as error:
                _log.error("a pool of an earlier node is left out: %s", error)

    async def _set(self, body: wire.PoolSet, peer: rpc.Peer) -> wire.PoolInfo:
        spec = PoolSpec(size=body.size, config=body.config, idle=body.idle)
        self._maker.warm.set(body.name, spec, "detached" if body.owner == "detached" else peer.id)
        return next(info for info in self._maker.warm.list() if info.name == body.name)

    async def _list(self, _body: wire.Empty, _peer: rpc.Peer) -> list[wire.PoolInfo]:
        _ = self._maker.permit.config
        return self._maker.warm.list()

    async def _filled(self, body: wire.PoolRef, _peer: rpc.Peer) -> wire.PoolInfo:
        return await self._maker.warm.filled(body.name)

    async def _delete(self, body: wire.PoolRef, _peer: rpc.Peer) -> wire.PoolInfo:
        return self._maker.warm.delete(body.name)
