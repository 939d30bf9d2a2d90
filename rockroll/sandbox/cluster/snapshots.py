"""Snapshots of a cluster: which nodes have one, and bringing it to another.

In: every node's list. Out: one row a snapshot, with its nodes; a box of a snapshot on a node that has room, where the
files are if one of those has. Leaves asking to client.py, the bytes to the nodes (node/bring.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from rockroll.errors import HostError, NoRoom, RockrollError, SnapshotNotFound, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.config import config_of
from rockroll.sandbox.wire import MOVED, SnapshotInfo

if TYPE_CHECKING:
    from rockroll.sandbox.cluster.client import HubNode


def merged(found: Mapping[str, list[SnapshotInfo]]) -> list[SnapshotInfo]:
    """By node ──► each snapshot once, the oldest first, with the nodes that have it."""
    nodes: dict[tuple[str, str, float], list[str]] = {}
    rows: dict[tuple[str, str, float], SnapshotInfo] = {}
    for node, infos in sorted(found.items()):
        for info in infos:
            key = info.name, info.sandbox, info.created
            rows.setdefault(key, info)
            nodes.setdefault(key, []).append(node)
    made = [msgspec.structs.replace(info, nodes=nodes[key]) for key, info in rows.items()]
    return sorted(made, key=lambda info: info.created)


async def find(hub: HubNode, name: str) -> SnapshotInfo:
    """SnapshotNotFound. UsageError where two nodes have different ones of that name."""
    found = [info for info in await listed(hub) if info.name == name]
    if not found:
        raise SnapshotNotFound(f"no node of the cluster has a snapshot {name!r}; `rockroll sandbox snapshots`")
    if len(found) > 1:
        places = " and ".join(", ".join(info.nodes) for info in found)
        raise UsageError(f"snapshot {name!r} is another one on {places}; remove it (`--rm`), or use the other's name")
    return found[0]


async def listed(hub: HubNode, _body: wire.Empty = wire.Empty()) -> list[SnapshotInfo]:  # noqa: B008 - frozen
    return merged(await hub.each("snapshot.list", wire.Empty(), list[SnapshotInfo]))


async def take(hub: HubNode, body: wire.Snapshot) -> SnapshotInfo:
    """UsageError where any node has one of that name."""
    if taken := [info for info in await listed(hub) if info.name == body.name]:
        raise UsageError(
            f"a snapshot named {body.name!r} exists on {', '.join(taken[0].nodes)}; take another name, or remove it"
            f" (`rockroll sandbox snapshots --rm {body.name}`)"
        )
    client = await hub.holding(body.id)
    return await client.call("sandbox.snapshot", body, type=SnapshotInfo)


async def copy(hub: HubNode, name: str, to: str) -> SnapshotInfo:
    """It is on node `to`, too. SnapshotNotFound, UsageError; HostError with what each node that has it said."""
    info = await find(hub, name)
    if to not in info.nodes:
        if to not in {view.name for view in hub.nodes}:
            there = ", ".join(sorted(view.name for view in hub.nodes)) or "none"
            raise UsageError(f"to: no node {to!r} in this cluster; there are: {there}")
        client = await hub.at(to)
        await client.call("snapshot.bring", wire.Bring(name=name, nodes=info.nodes), type=SnapshotInfo)
    return msgspec.structs.replace(info, nodes=sorted({*info.nodes, to}))


async def fork(hub: HubNode, body: wire.Fork) -> wire.SandboxInfo:
    """On the box's own node, where that takes another one; else on one that the hub picks, by a snapshot that is gone
    afterwards. NoRoom, and what the box's own node raised."""
    client = await hub.holding(body.id)
    info = await client.call("sandbox.get", wire.Ref(id=body.id), type=wire.SandboxInfo)
    refused: HostError | None = None
    if any(view.name == info.node and view.state == "up" for view in hub.nodes):
        try:
            return await client.call("sandbox.fork", body, type=wire.SandboxInfo)
        except HostError as error:
            refused = error
    name = f"{MOVED}{secrets.token_hex(6)}"
    made = await client.call("sandbox.snapshot", wire.Snapshot(id=body.id, name=name), type=SnapshotInfo)
    try:
        config = dataclasses.asdict(config_of({**made.config, "name": body.name, "snapshot": name}))
        create = wire.Create(config=config, owner=body.owner or info.owner, key=body.key)
        return await hub.create(create, elsewhere=info.node)
    except NoRoom as error:
        raise refused or error from None
    finally:
        with contextlib.suppress(RockrollError):  # a node that is lost meanwhile
            await hub.call("snapshot.delete", wire.SnapshotRef(name=name), type=SnapshotInfo)


OF_CLUSTER: dict[str, Callable[[HubNode, Any], Awaitable[Any]]] = {
    "snapshot.list": listed,
    "sandbox.snapshot": take,
    "sandbox.fork": fork,
}
