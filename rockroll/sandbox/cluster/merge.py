"""What the methods that name no box mean for a whole cluster.

In: every node's answer. Out: one. Leaves asking to client.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from rockroll.errors import HostError, UsageError
from rockroll.release import VERSION
from rockroll.sandbox import wire

Each = Callable[..., Awaitable[dict[str, Any]]]
"""`await each(method, body, type)`: the answer of each node, by its name."""


async def _listed(each: Each, method: str, body: Any) -> list[wire.SandboxInfo]:
    found = await each(method, body, list[wire.SandboxInfo])
    return [info for infos in found.values() for info in infos]


async def _info(each: Each, method: str, body: Any) -> wire.NodeInfo:
    found: dict[str, wire.NodeInfo] = await each(method, body, wire.NodeInfo)
    return wire.NodeInfo(
        node=", ".join(sorted(found)),
        pid=0,
        version=VERSION,
        sandboxes=sum(info.sandboxes for info in found.values()),
        rootless=any(info.rootless for info in found.values()),
    )


async def _pools(each: Each, method: str, body: Any) -> list[wire.PoolInfo]:
    """A pool of the cluster is one of that name on each node: their numbers together."""
    found: dict[str, list[wire.PoolInfo]] = await each(method, body, list[wire.PoolInfo])
    pools: dict[str, list[wire.PoolInfo]] = {}
    for infos in found.values():
        for info in infos:
            pools.setdefault(info.name, []).append(info)
    return [_sum(infos) for infos in pools.values()]


async def _pool(each: Each, method: str, body: Any) -> wire.PoolInfo:
    found: Mapping[str, wire.PoolInfo] = await each(method, body, wire.PoolInfo)
    if not found:
        raise HostError("no node of the cluster is there")
    return _sum(list(found.values()))


def _sum(infos: list[wire.PoolInfo]) -> wire.PoolInfo:
    return msgspec.structs.replace(
        infos[0],
        size=sum(info.size for info in infos),
        ready=sum(info.ready for info in infos),
        making=sum(info.making for info in infos),
        taken=sum(info.taken for info in infos),
        missed=sum(info.missed for info in infos),
        asleep=all(info.asleep for info in infos),
        fault=next((info.fault for info in infos if info.fault), None),
    )


OF_ALL: dict[str, Callable[[Each, str, Any], Awaitable[Any]]] = {
    "sandbox.list": _listed,
    "node.info": _info,
    "pool.list": _pools,
    "pool.set": _pool,
    "pool.filled": _pool,
    "pool.delete": _pool,
}
"""Asked of every node."""

OF_ONE = ("snapshot.delete",)
"""Asked of every node; one of them has what it names."""

LOCAL_ONLY = {"sandbox.terminal": "a descriptor is handed over inside one host; between hosts it is terminal.open"}


def id_of(method: str, body: Any) -> str:
    """The box that a call is about. UsageError where a method does not go through a hub."""
    if method in LOCAL_ONLY:
        raise UsageError(f"{method} does not go to a cluster: {LOCAL_ONLY[method]}")
    id = body.get("id") if isinstance(body, dict) else getattr(body, "id", None)
    if not isinstance(id, str):
        raise UsageError(f"{method} names no sandbox; a cluster does not know whom to ask")
    return id
