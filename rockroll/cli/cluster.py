"""`rockroll hub`, `rockroll node`, `rockroll cluster …`: a cluster by hand, without Ray.

In: the command line. Out: a hub, or this host's node as a member, until Ctrl-C or SIGTERM; tables of nodes. Leaves what
they do to rockroll/placement; what this file imports at its top is what `--help` needs and no more.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rockroll.cli.arguments import Json
from rockroll.cli.server_option import ClusterFile, RayAddress, chosen
from rockroll.cli.show import print_json, print_table
from rockroll.errors import UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.cluster.wire import NodeView

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The nodes of a cluster (docs/cluster.md).\n\nExample:\n\n"
    "  rockroll hub --address tcp://10.0.0.5:41500 --file cluster.json\n\n"
    "  rockroll node --hub cluster.json            (on each machine)\n\n"
    "  rockroll cluster --cluster cluster.json ls",
)


@app.callback()
def place(ctx: typer.Context, cluster: ClusterFile = None, ray: RayAddress = None) -> None:
    ctx.with_resource(chosen(None, cluster, ray))


def hub(
    address: Annotated[
        str, typer.Option(help="tcp://IP:PORT of this machine, as the others reach it; PORT 0: any that is free.")
    ],
    file: Annotated[Path, typer.Option(help="Where to write what nodes and clients need; it holds the key.")] = Path(
        "cluster.json"
    ),
    policy: Annotated[str, typer.Option(help="spread: the emptiest node first; pack: the fullest.")] = "spread",
    overcommit: Annotated[float, typer.Option(help="CPUs that may be granted for each that a node has.")] = 32.0,
) -> None:
    """Run the hub of a cluster, until Ctrl-C: the one process that listens. Nodes and clients dial out to it.

    It writes FILE (mode 0600): copy it to every machine that shall be a node or use the cluster. Whoever has it is let
    in. A hub that is started again with the same FILE takes the same port and key; sandboxes and calls outlive it.

    Examples:

      rockroll hub --address tcp://10.0.0.5:41500 --file cluster.json

      scp cluster.json worker: && ssh worker rockroll node --hub cluster.json
    """
    if policy not in ("spread", "pack"):
        raise UsageError(f"policy: spread or pack; got {policy!r}")
    import uvloop

    from rockroll import logs
    from rockroll.placement.hub import Hub

    async def serve() -> None:
        await Hub(address, file, policy, overcommit).run()  # type: ignore[arg-type]

    logs.begin()
    uvloop.run(serve())


def node(
    hub: Annotated[Path | None, typer.Option(metavar="FILE", help="The file that `rockroll hub` wrote.")] = None,
    name: Annotated[str | None, typer.Option(help="Unique in the cluster; the host's name if left out.")] = None,
    leave: Annotated[bool, typer.Option("--leave", help="End what a killed `rockroll node` has left joined.")] = False,
) -> None:
    """Make this machine a node of a cluster, until Ctrl-C: its sandboxes are then the cluster's to place.

    It dials out to the hub and needs no open port. The node process is started where none runs, and joins again by
    itself should it or the hub be killed. On Ctrl-C it leaves; sandboxes that are detached stay on this machine.

    Examples:

      rockroll node --hub cluster.json

      rockroll node --hub cluster.json --name worker-7

      ROCKROLL_CLUSTER=cluster.json rockroll sandbox up --count 16
    """
    if leave == (hub is not None):
        raise UsageError("say either --hub FILE, to join, or --leave")
    from rockroll.cli.loop import run

    try:
        run(_leave() if hub is None else _stay(hub, name))
    except KeyboardInterrupt:
        print("rockroll: left the cluster", file=sys.stderr)


async def _stay(file: Path, name: str | None) -> None:
    import asyncio

    from rockroll.placement import member
    from rockroll.sandbox.node_client import close_node

    joined = await member.join(file, name)
    print(f"node {joined.name} has joined the cluster at {joined.hub}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await member.leave()
        await close_node()


async def _leave() -> None:
    from rockroll.placement import member
    from rockroll.sandbox.node_client import close_node

    await member.leave()
    await close_node()


async def _nodes(change: tuple[str, bool] | None = None) -> list[NodeView]:
    from rockroll.sandbox import where
    from rockroll.sandbox.cluster.client import HubNode
    from rockroll.sandbox.node_client import close_node, connect_to

    found = where.hub()
    if found is None:
        raise UsageError("which cluster: say --cluster FILE or --ray ADDRESS, or set ROCKROLL_CLUSTER")
    try:
        client = await connect_to(found)
        assert isinstance(client, HubNode)
        if change is not None:
            await client.drain(*change)
        return await client.refresh()
    finally:
        await close_node()


@app.command()
def ls(as_json: Json = False) -> None:
    """List the nodes: their state, sandboxes, what is granted of CPUs and memory, and how many more would fit."""
    from rockroll.cli.loop import run

    _show(run(_nodes()), as_json)


@app.command()
def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name in `rockroll cluster ls`.")],
    off: Annotated[bool, typer.Option("--off", help="Place sandboxes there again.")] = False,
    as_json: Json = False,
) -> None:
    """Place no more sandboxes on a node; those that it has go on.

    Example:

      rockroll cluster --cluster cluster.json drain worker-7
    """
    from rockroll.cli.loop import run

    _show(run(_nodes((node, not off))), as_json)


def _show(views: list[NodeView], as_json: bool) -> None:
    if as_json:
        print_json([_public(view) for view in views])
        return
    from rockroll.units import show_size

    header = ["NODE", "STATE", "BOXES", "CPUS", "MEMORY", "ROOM", "HEARD"]
    rows = [
        [
            view.name,
            view.state,
            str(view.boxes),
            f"{view.cpus_granted:g} of {view.cpus:g}",
            f"{show_size(view.memory_granted)} of {show_size(view.memory)}",
            str(view.room),
            f"{view.silent_s:.1f} s ago",
        ]
        for view in views
    ]
    print_table(header, rows)


def _public(view: NodeView) -> dict[str, Any]:
    import msgspec

    fields = msgspec.structs.asdict(view)
    del fields["trunk"]
    return fields
