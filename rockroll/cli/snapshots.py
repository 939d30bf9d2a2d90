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
    as_json: Json = False,
) -> None:
    """List the snapshots of this user, or remove some.

    Examples:

      rockroll sandbox snapshots

      rockroll sandbox snapshots --rm ready
    """

    async def work() -> list[SnapshotInfo]:
        from rockroll.sandbox.client import delete_snapshot, snapshots

        async with connected():
            if remove:
                return [await delete_snapshot(name) for name in dict.fromkeys(remove)]
            return await snapshots()

    infos = run(work())
    if as_json:
        print_json([public_snapshot(info) for info in infos])
    elif remove:
        for info in infos:
            print(safe(info.name))
    else:
        from rockroll.units import show_size

        rows = [[info.name, show_size(info.size_bytes), info.image, age(info.created)] for info in infos]
        print_table(["NAME", "SIZE", "IMAGE", "AGE"], rows)


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
