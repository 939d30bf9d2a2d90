"""`rockroll sandbox network | forward`: whom a sandbox has reached, and its ports on this host.

In: the command line. Out: a table or JSON; a place on this host that leads into a sandbox, until Ctrl-C. Leaves the
work to the node.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rockroll.cli.arguments import Id, Json
from rockroll.cli.loop import run
from rockroll.cli.node import attached
from rockroll.cli.show import age, print_json, print_table
from rockroll.cli.text import safe
from rockroll.errors import RockrollError, UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.wire import NetworkEvent, NetworkInfo

LOOPBACK = ("127.", "::1", "localhost")


def network(id: Id, as_json: Json = False) -> None:
    """Show whom a sandbox may reach, and the last connections that it asked its proxy for; why one was refused.

    Examples:

      rockroll sandbox up --name demo --network 'allow:pypi.org,*.pythonhosted.org'

      rockroll sandbox network demo
    """

    async def work() -> NetworkInfo:
        async with attached(id) as sandbox:
            return await sandbox.network()

    info = run(work())
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(info))
        return
    print(f"network: {safe(info.network)}")
    if not info.network.startswith("allow:"):
        return
    print(f"{info.allowed} allowed, {info.refused} refused, {info.failed} failed, {info.open} open")
    if info.recent:
        print_table(["AGE", "VERDICT", "REQUEST", "TO", "SENT", "RECEIVED", ""], [_row(each) for each in info.recent])


def _row(event: NetworkEvent) -> list[str]:
    from rockroll.units import show_size

    verdict = "open" if event.open else event.verdict
    asked = f"{event.method} {event.host}:{event.port}" if event.host else "-"
    sizes = [show_size(event.sent_bytes), show_size(event.received_bytes)]
    return [age(event.time), verdict, asked, event.address or "-", *sizes, event.reason]


def forward(
    id: Id,
    ports: Annotated[
        list[str], typer.Argument(metavar="[LOCAL:]PORT", help="Ports in the sandbox; LOCAL 0 is any free one here.")
    ],
    local: Annotated[int | None, typer.Option(help="The port here, where one is forwarded.")] = None,
    address: Annotated[str, typer.Option(help="The address here to listen at.")] = "127.0.0.1",
) -> None:
    """Make ports of a sandbox reachable on this host, until Ctrl-C; it needs no network for that.

    A server in the sandbox may listen on its 127.0.0.1 only. Only this host reaches it, unless --address says more.

    Examples:

      rockroll sandbox forward demo 8080

      rockroll sandbox forward demo 9000:8080 0:5432
    """
    pairs = [_pair(text) for text in ports]
    if local is not None:
        if len(pairs) != 1 or ":" in ports[0]:
            raise UsageError("--local goes with one port; write several as LOCAL:PORT")
        pairs = [(local, pairs[0][1])]
    if not address.startswith(LOOPBACK):
        print(f"rockroll: whoever reaches {safe(address)} reaches the sandbox, without a password", file=sys.stderr)

    def tell(error: RockrollError) -> None:
        print(f"rockroll: {safe(str(error))}", file=sys.stderr, flush=True)

    async def work() -> None:
        import asyncio
        from contextlib import AsyncExitStack

        async with attached(id) as sandbox, AsyncExitStack() as open_:
            for here, there in pairs:
                place = await open_.enter_async_context(
                    sandbox.forward(there, local=here, address=address, on_error=tell)
                )
                print(f"{place} -> {safe(sandbox.name)} port {there}", flush=True)
            await asyncio.Future()  # until Ctrl-C

    run(work())


def _pair(text: str) -> tuple[int, int]:
    """(local, remote)."""
    found = re.fullmatch(r"(?:([0-9]{1,5}):)?([0-9]{1,5})", text, re.ASCII)
    if not found:
        raise UsageError(f"forward: a port is PORT or LOCAL:PORT, as in 8080 or 9000:8080; got {text!r}")
    here, there = found.groups()
    return int(there if here is None else here), int(there)
