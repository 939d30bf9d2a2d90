"""`rockroll image`: the images sandboxes start from.

In: command lines. Out: a table, or JSON with --json.
Leaves making them to sandbox/container/image.py, imported on use: aiohttp would make every command start slower.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from rockroll import units

if TYPE_CHECKING:
    from rockroll.sandbox.container.image import Image

app = typer.Typer(help="The images that sandboxes start from.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def build(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make it anew, even if it is there.")] = False,
    tar: Annotated[Path | None, typer.Option("--from", help="Import this tar of a root file system.")] = None,
    json: AsJson = False,
) -> None:
    """Make the default image: from a registry where one answers, else with mmdebstrap (about 20 s)."""
    from rockroll.sandbox.container import image
    from rockroll.sandbox.container.podman import PodmanService

    progress = Console(stderr=True)

    async def run() -> Image:
        async with PodmanService() as podman:
            return await image.ensure(podman, rebuild=rebuild, tar=tar, say=lambda line: progress.print(line))

    made = asyncio.run(run())
    if json:
        typer.echo(msgspec.json.encode(made))
    else:
        typer.echo(f"{made.name} {made.id[:12]} {units.show_size(made.size_bytes)} ({made.source})")


@app.command()
def ls(json: AsJson = False) -> None:
    """List the images of the local store."""
    from rockroll.sandbox.container import image
    from rockroll.sandbox.container.podman import PodmanService

    async def run() -> list[Image]:
        async with PodmanService() as podman:
            return await image.images(podman)

    found = asyncio.run(run())
    if json:
        typer.echo(msgspec.json.encode(found))
        return
    table = Table("image", "id", "size", box=None, pad_edge=False)
    for each in found:
        name = f"{each.name} (default)" if each.default else each.name
        table.add_row(name, each.id[:12], units.show_size(each.size_bytes))
    Console().print(table)


@app.command()
def pull(name: str, json: AsJson = False) -> None:
    """Fetch an image from a registry into the store that sandboxes use."""
    from rockroll.sandbox.container import image
    from rockroll.sandbox.container.podman import PodmanService

    async def run() -> None:
        async with PodmanService() as podman:
            await podman.image_pull(name, image.BUILD_TIMEOUT_S)

    asyncio.run(run())
    typer.echo(msgspec.json.encode({"name": name}) if json else f"{name} is in the local store")
