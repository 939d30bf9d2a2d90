"""Warm pools, as Python sees them: boxes that the node keeps ready for whoever asks for one of their kind.

In: a SandboxConfig and a number. Out: what the node says. Leaves the pools to the node (warm.py). A run's own boxes,
recycled between episodes, are pool.py's; it draws on these without a word.

    await set_warm_pool("small", 8, SandboxConfig(memory="128m"))
    async with Sandbox(SandboxConfig(memory="128m")) as sandbox: …     # there at once
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rockroll.errors import UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.node_client import connect_to
from rockroll.sandbox.where import Cluster, Server, place
from rockroll.sandbox.wire import Owner, PoolInfo


async def set_warm_pool(
    name: str,
    size: int,
    config: SandboxConfig | None = None,
    *,
    idle: str | float | None = "1h",
    owner: Owner = "detached",
    wait: bool = False,
    base_url: str | None = None,
    token: str | None = None,
    cluster: Cluster | None = None,
) -> PoolInfo:
    """Makes a pool of `size` boxes of this config, or changes the one of that name. Returns at once, or once it is full
    with `wait`; `fault` says why it could not be filled.

    idle: the boxes are given up when nobody took one for this long; None: never. owner: "connection" pools go with this
    process, "detached" ones with `delete_warm_pool`; over HTTP all are. base_url, token, cluster: where, as of Sandbox;
    in a cluster, every node has a pool of this size. UsageError where another pool has boxes of this kind.
    """
    where_ = place(base_url, token, cluster)
    if isinstance(where_, Server) and owner == "connection":
        raise UsageError('owner="connection": over HTTP a pool goes with `delete_warm_pool` alone; leave it out')
    pool = wire.PoolSet(name=name, size=size, config=_fields(config or SandboxConfig()), idle=idle, owner=owner)
    node = await connect_to(where_)
    info = await node.call("pool.set", pool, type=PoolInfo)
    return await node.call("pool.filled", wire.PoolRef(name=name), type=PoolInfo) if wait else info


async def warm_pools(
    *, base_url: str | None = None, token: str | None = None, cluster: Cluster | None = None
) -> list[PoolInfo]:
    """Every pool of this node, of that server, or of that cluster."""
    node = await connect_to(place(base_url, token, cluster))
    return await node.call("pool.list", wire.Empty(), type=list[PoolInfo])


async def delete_warm_pool(
    name: str, *, base_url: str | None = None, token: str | None = None, cluster: Cluster | None = None
) -> PoolInfo:
    """Ends a pool; its boxes go. UsageError where there is none of that name."""
    node = await connect_to(place(base_url, token, cluster))
    return await node.call("pool.delete", wire.PoolRef(name=name), type=PoolInfo)


def _fields(config: SandboxConfig) -> dict[str, Any]:
    """Those that differ from the defaults. A box's own (name, labels, …) are refused by the node where they are set."""
    usual = dataclasses.asdict(SandboxConfig())
    return {key: value for key, value in dataclasses.asdict(config).items() if value != usual[key]}
