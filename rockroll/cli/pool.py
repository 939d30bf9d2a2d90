"""`rockroll sandbox pool …`: sandboxes that stand ready.

In: the command line. Out: a table for people, JSON with --json. Leaves the pools to the node: what this file imports at
its top is what `--help` needs and no more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rockroll.cli.arguments import Json, pairs
from rockroll.cli.node import connected
from rockroll.cli.show import print_json, print_table
from rockroll.cli.text import safe
from rockroll.errors import HostError, UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.wire import PoolInfo

T = TypeVar("T")
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Warm pools: sandboxes that stand ready, session and model endpoint included, for whoever asks for one of the"
    " same kind.\n\nExample:\n\n"
    "  rockroll sandbox pool set small --size 8 --memory 128m --wait\n\n"
    "  rockroll sandbox up --memory 128m\n\n"
    "  rockroll sandbox pool ls\n\n"
    "  rockroll sandbox pool rm small\n\n"
    "Pools can also be written down in $ROCKROLL_HOME/node.yaml (see configs/node.yaml).",
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The pool's name.")]


@app.command("set")
def set_(
    name: Name,
    size: Annotated[int, typer.Option(min=0, max=1000, help="How many stand ready.")],
    image: Annotated[str | None, typer.Option(help="As of `sandbox up`.")] = None,
    cpus: Annotated[float, typer.Option(help="As of `sandbox up`.")] = 1.0,
    memory: Annotated[str, typer.Option(help="As of `sandbox up`.")] = "512m",
    pids: Annotated[int, typer.Option(help="As of `sandbox up`.")] = 256,
    disk: Annotated[str | None, typer.Option(help="As of `sandbox up`.")] = None,
    network: Annotated[str, typer.Option(help="As of `sandbox up`.")] = "none",
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="As of `sandbox up`.")] = None,
    idle: Annotated[str, typer.Option(help="Given up after this time without a call for one; never: kept.")] = "1h",
    wait: Annotated[bool, typer.Option("--wait", help="Return when the pool is full.")] = False,
    as_json: Json = False,
) -> None:
    """Make a pool, or change the one of that name. It fills in the background.

    A sandbox comes from it when image, limits, network and variables are the same; name, labels and times are its own.

    Examples:

      rockroll sandbox pool set ready --size 4

      rockroll sandbox pool set small --size 16 --memory 128m --pids 64 --idle never --wait
    """
    from rockroll.sandbox.config import SandboxConfig

    try:
        config = SandboxConfig(
            image=image,
            cpus=cpus,
            memory=memory,
            pids=pids,
            disk=disk,
            network=network,  # type: ignore[arg-type]  # checked by SandboxConfig, whose sentence says how to write it
            env=pairs("--env", env),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None

    async def work() -> PoolInfo:
        from rockroll.sandbox.warm_pools import set_warm_pool

        return await set_warm_pool(name, size, config, idle=None if idle == "never" else idle, wait=wait)

    info = _run(work)
    _show([info], as_json)
    if wait and info.fault:
        raise HostError(f"pool {name} could not be filled: {info.fault}")


@app.command()
def ls(as_json: Json = False) -> None:
    """List the pools: how many stand ready, how often one was taken, how often none was there.

    Example: rockroll sandbox pool ls --json
    """

    async def work() -> list[PoolInfo]:
        from rockroll.sandbox.warm_pools import warm_pools

        return await warm_pools()

    _show(_run(work), as_json)


@app.command()
def rm(name: Name, as_json: Json = False) -> None:
    """End a pool and remove the sandboxes that stand ready in it; those that were taken stay.

    Example: rockroll sandbox pool rm small
    """

    async def work() -> PoolInfo:
        from rockroll.sandbox.warm_pools import delete_warm_pool

        return await delete_warm_pool(name)

    info = _run(work)
    if as_json:
        print_json(_public(info))
    else:
        print(safe(info.name))


def _run(work: Callable[[], Awaitable[T]]) -> T:
    from rockroll.cli.loop import run

    async def whole() -> T:
        async with connected():
            return await work()

    return run(whole())


def _public(info: PoolInfo) -> dict[str, Any]:
    """A pool as JSON; variables stay out, since people put secrets there."""
    import msgspec

    fields = msgspec.structs.asdict(info)
    fields["config"] = {key: value for key, value in info.config.items() if key != "env"}
    return fields


def _show(infos: list[PoolInfo], as_json: bool) -> None:
    if as_json:
        print_json([_public(info) for info in infos])
        return
    rows = []
    for info in infos:
        state = info.fault or ("asleep" if info.asleep else "node.yaml" if info.in_file else "")
        counts = [f"{info.ready}/{info.size}", str(info.making), str(info.taken), str(info.missed)]
        rows.append([info.name, *counts, info.image, state])
    print_table(["NAME", "READY", "MAKING", "TAKEN", "MISSED", "IMAGE", "STATE"], rows)
