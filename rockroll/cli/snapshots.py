"""`rockroll sandbox snapshot | snapshots | fork`: copies of what a sandbox has written.

In: the command line. Out: names and ids, a table, or JSON with --json. Leaves the copying to the node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rockroll.cli.arguments import Id, Json
from rockroll.cli.loop import run
from rockroll.cli.node import attached, connected
from rockroll.cli.show import age, print_json, print_table, public, public_snapshot
from rockroll.cli.text import safe
from rockroll.errors import UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.wire import SandboxInfo, SnapshotInfo


def snapshot(
    id: Id, name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")], as_json: Json = False
) -> None:
    """Keep what a sandbox has written so far, under a name, to start others from. The sandbox goes on.

    Files only: no processes, no sessions. A running sandbox is held still while its files are copied.

    Examples:

      rockroll sandbox snapshot demo ready

      rockroll sandbox up --snapshot ready --count 4
    """

    async def work() -> SnapshotInfo:
        async with attached(id) as sandbox:
            return await sandbox.snapshot(name)

    info = run(work())
    if as_json:
        print_json(public_snapshot(info))
    else:
        print(safe(info.name))


def snapshots(
    remove: Annotated[
        list[str] | None, typer.Option("--rm", metavar="NAME", help="Remove this one; may be given again.")
    ] = None,
    copy: Annotated[str | None, typer.Option(metavar="NAME", help="Copy this one to another node.")] = None,
    to: Annotated[str | None, typer.Option(metavar="NODE", help="Of `rockroll cluster ls`; goes with --copy.")] = None,
    as_json: Json = False,
) -> None:
    """List the snapshots of this user or cluster, remove some, or copy one to another node.

    In a cluster a snapshot is copied by itself where a sandbox of it is placed; --copy does so ahead.

    Examples:

      rockroll sandbox snapshots

      rockroll sandbox snapshots --rm ready

      rockroll sandbox --cluster cluster.json snapshots --copy ready --to worker-7
    """
    if (copy is None) != (to is None) or (copy and remove):
        raise UsageError("say --copy NAME with --to NODE, or --rm NAME, or neither")
    if copy is not None:
        from rockroll.sandbox import where

        if where.hub() is None:
            raise UsageError("--copy goes from node to node of a cluster: which? --cluster FILE or --ray ADDRESS")

    async def work() -> list[SnapshotInfo]:
        from rockroll.sandbox.client import delete_snapshot, snapshots

        async with connected():
            if copy is not None and to is not None:
                return [await _copied(copy, to)]
            if remove:
                return [await delete_snapshot(name) for name in dict.fromkeys(remove)]
            return await snapshots()

    infos = run(work())
    if as_json:
        print_json([public_snapshot(info) for info in infos])
    elif copy is not None:
        for info in infos:
            print(safe(f"{info.name}: {', '.join(info.nodes)}"))
    elif remove:
        for info in infos:
            print(safe(info.name))
    else:
        from rockroll.units import show_size

        header = ["NAME", "SIZE", "IMAGE", "AGE"]
        rows = [[info.name, show_size(info.size_bytes), info.image, age(info.created)] for info in infos]
        if any(info.nodes for info in infos):
            header.append("NODES")
            rows = [[*row, ", ".join(info.nodes)] for row, info in zip(rows, infos, strict=True)]
        print_table(header, rows)


async def _copied(name: str, to: str) -> SnapshotInfo:
    from rockroll.sandbox import where
    from rockroll.sandbox.cluster import snapshots
    from rockroll.sandbox.cluster.client import HubNode
    from rockroll.sandbox.node_client import connect_to

    client = await connect_to(where.hub())
    assert isinstance(client, HubNode)
    return await snapshots.copy(client, name, to)


def fork(
    id: Id,
    name: Annotated[str | None, typer.Option(help="A name for the new one.")] = None,
    as_json: Json = False,
) -> None:
    """Start another sandbox of the same settings with a copy of this one's files. It lives until `down`.

    Neither sees what the other writes later. Files only: no processes, no sessions.

    Examples:

      rockroll sandbox fork demo --name try-1

      rockroll sandbox fork demo --json
    """

    async def work() -> SandboxInfo:
        async with attached(id) as sandbox:
            return (await sandbox.fork(name=name, owner="detached")).info

    info = run(work())
    if as_json:
        print_json([public(info)])
    else:
        print(safe(info.id))
