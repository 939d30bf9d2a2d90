"""What there is besides one sandbox: all those of a home, a server or a cluster, and the snapshots.

In: conditions, names. Out: SandboxInfos, SnapshotInfos. Leaves one box to client.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from rockroll.sandbox import where, wire
from rockroll.sandbox.node_client import connect_to
from rockroll.sandbox.wire import SandboxInfo, SnapshotInfo, State


async def list_sandboxes(
    *,
    labels: Mapping[str, str] | None = None,
    state: State | None = None,
    all: bool = False,
    base_url: str | None = None,
    token: str | None = None,
    cluster: where.Cluster | None = None,
) -> list[SandboxInfo]:
    """The sandboxes of this home, of that server or of that cluster, that carry every label given and are in that
    state; with `all` also those that are gone (the last 1,000), each with the cause and time of its end."""
    node = await connect_to(where.place(base_url, token, cluster))
    body = wire.List(all=all, labels=dict(labels or {}), state=state)
    return await node.call("sandbox.list", body, type=list[SandboxInfo])


async def snapshots(*, base_url: str | None = None, token: str | None = None) -> list[SnapshotInfo]:
    """Every snapshot of this home, or of that server, the oldest first."""
    node = await connect_to(where.place(base_url, token))
    return await node.call("snapshot.list", wire.Empty(), type=list[SnapshotInfo])


async def delete_snapshot(name: str, *, base_url: str | None = None, token: str | None = None) -> SnapshotInfo:
    """Removes a snapshot; boxes that were started from it keep their files. SnapshotNotFound."""
    node = await connect_to(where.place(base_url, token))
    return await node.call("snapshot.delete", wire.SnapshotRef(name=name), type=SnapshotInfo)
