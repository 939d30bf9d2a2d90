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
from rockroll.errors import UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.container.image import Image

app = typer.Typer(help="The images that sandboxes start from.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def build(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make it anew, even if it is there.")] = False,
    tar: Annotated[Path | None, typer.Option("--from", help="Import this tar of a root file system.")] = None,
    agent: Annotated[
        str | None, typer.Option(metavar="PRESET", help="The default image with this agent in it (docs/agents.md).")
    ] = None,
    json: AsJson = False,
) -> None:
    """Make the default image: from a registry where one answers, else with mmdebstrap (about 20 s).

    With --agent, that image with a coding agent at a pinned version, for `agent: {preset: PRESET}` in a recipe, which
    makes it too where it is missing.

    Examples:

      rockroll image build

      rockroll image build --agent mini-swe-agent
    """
    from rockroll.sandbox.container import image
    from rockroll.sandbox.container.podman import PodmanService

    progress = Console(stderr=True)

    def told(line: str) -> None:
        progress.print(line, markup=False)

    async def with_agent(name: str) -> Image:
        from rockroll.agent.install import build_image
        from rockroll.agent.presets import preset

        try:
            known = preset(name)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if rebuild or tar is not None:
            raise UsageError("--agent stands on the default image as it is; leave out --rebuild and --from")
        async with PodmanService() as podman:
            await image.ensure(podman, say=told)
            made = await build_image(podman, known, told)
            return next(each for each in await image.images(podman) if each.name == made)

    async def run() -> Image:
        if agent is not None:
            return await with_agent(agent)
        async with PodmanService() as podman:
            return await image.ensure(podman, rebuild=rebuild, tar=tar, say=told)

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
def pull(
    name: Annotated[str, typer.Argument(metavar="IMAGE", help="As its registry calls it, the registry's host first.")],
    json: AsJson = False,
) -> None:
    """Fetch an image from a registry into the store that sandboxes use.

    Example: rockroll image pull docker.io/library/python:3.12-slim
    """
    from rockroll.sandbox.container import image
    from rockroll.sandbox.container.podman import PodmanService

    async def run() -> None:
        async with PodmanService() as podman:
            await podman.image_pull(name, image.BUILD_TIMEOUT_S)

    asyncio.run(run())
    typer.echo(msgspec.json.encode({"name": name}) if json else f"{name} is in the local store")
