"""`rockroll tasks`: folders of terminal tasks, in Harbor's or Terminal-Bench's layout.

In: command lines. Out: tables, or JSON with --json; exit code 1 where a task cannot be trusted. Leaves reading,
building and grading to env/terminal, imported on use.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rockroll.cli.arguments import Json
from rockroll.cli.show import print_json, print_table
from rockroll.cli.text import safe, safe_lines
from rockroll.errors import EnvError, UsageError

if TYPE_CHECKING:
    from rockroll.env.terminal.tasks import TerminalTasks

app = typer.Typer(
    help="Folders of terminal tasks, in Harbor's or Terminal-Bench's layout (docs/tasks.md).", no_args_is_help=True
)
Folder = Annotated[
    Path | None, typer.Argument(metavar="DIR", help="A task, or a folder of them; left out: rockroll's own three.")
]
StandIn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="IMAGE=OTHER", help="In place of an image that FROM names; OTHER may be `default`, IMAGE `*`."
    ),
]
Only = Annotated[list[str] | None, typer.Option(metavar="NAME", help="This task alone. Again for each.")]


@app.command()
def ls(folder: Folder = None, as_json: Json = False) -> None:
    """List the tasks of a folder, and what is wrong with those that cannot be read. Starts nothing.

    Example:

      rockroll tasks ls terminal-bench/tasks
    """
    from rockroll.env.terminal.layout import find_tasks, read
    from rockroll.env.terminal.tasks import BUNDLED

    rows: list[dict[str, Any]] = []
    for path in find_tasks(folder or BUNDLED):
        try:
            task = read(path)
            limits = {"agent_s": task.agent_seconds, "test_s": task.test_seconds}
            rows.append({"name": task.name, "ok": True, **limits, "box": dict(task.box), "detail": task.instruction})
        except EnvError as error:
            rows.append({"name": path.name, "ok": False, "detail": error.message})
    if as_json:
        print_json(rows)
    else:
        shown = [
            [
                safe(row["name"]),
                f"{row['agent_s']:g}" if row["ok"] else "-",
                safe(row["detail"].partition("\n")[0][:90]),
            ]
            for row in rows
        ]
        print_table(["TASK", "AGENT_S", "WHAT IS ASKED"], shown)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


@app.command()
def build(folder: Folder = None, stand_in: StandIn = None, only: Only = None, as_json: Json = False) -> None:
    """Build the images of a folder's tasks, each from its Dockerfile; those that are there are not built again.

    A run and `tasks check` do so by themselves. On a cluster, build on each host that has sandboxes.

    Example:

      rockroll tasks build my_tasks --stand-in ubuntu:24.04=default
    """
    tasks, progress = _tasks(folder, stand_in, only), Console(stderr=True)
    asyncio.run(tasks.prepare(lambda line: progress.print(line, markup=False)))
    made = {task.name: tasks.of(task).box["image"] for task in tasks.tasks}
    if as_json:
        print_json(made)
    else:
        print_table(["TASK", "IMAGE"], [[safe(name), image] for name, image in made.items()])


@app.command()
def check(
    folder: Folder = None,
    stand_in: StandIn = None,
    only: Only = None,
    network: Annotated[str, typer.Option(help="Of the boxes: none, open, or allow:HOST,HOST.")] = "none",
    at_once: Annotated[int, typer.Option(min=1, help="Boxes at work.")] = 2,
    as_json: Json = False,
) -> None:
    """Run each task's solution, and nothing at all: they must earn 1 and 0. Exit code 1 where one does not.

    Examples:

      rockroll tasks check

      rockroll tasks check my_tasks/fix-the-build --network open
    """
    from rockroll.env.terminal import check as checking
    from rockroll.sandbox.config import SandboxConfig
    from rockroll.sandbox.node_client import close_node

    tasks = _tasks(folder, stand_in, only)
    try:
        config = SandboxConfig(network=network)
    except ValueError as error:
        raise UsageError(str(error)) from None

    async def run() -> list[checking.Checked]:
        found = []
        try:
            async for each in checking.check(tasks, config, at_once=at_once):
                found.append(each)
                if not as_json:
                    _show(each)
        finally:
            await close_node()
        return found

    found = asyncio.run(run())
    wrong = sorted({each.task for each in found if not each.ok})
    if as_json:
        import msgspec

        print_json({"ok": not wrong, "tasks": [msgspec.structs.asdict(each) for each in found]})
    else:
        end = f"{len(wrong)} of {len(tasks.tasks)} tasks cannot be trusted: {safe(', '.join(wrong))}" if wrong else ""
        Console().print(end or f"{len(tasks.tasks)} tasks: solved earns 1, nothing done earns 0.", markup=False)
    if wrong:
        raise typer.Exit(1)


def _tasks(folder: Path | None, stand_in: list[str] | None, only: list[str] | None) -> TerminalTasks:
    from rockroll.env.terminal.tasks import TerminalTasks

    pairs: dict[str, str] = {}
    for each in stand_in or []:
        image, equals, other = each.partition("=")
        if not (image and equals and other):
            raise UsageError(f"--stand-in is IMAGE=OTHER, as in ubuntu:24.04=default; got {each!r}")
        pairs[image] = other
    return TerminalTasks(folder, stand_in=pairs, only=only)


def _show(each: Any) -> None:
    console = Console()
    reward = "no reward" if each.reward is None else f"{each.reward:g}"
    console.print(
        f"{'ok  ' if each.ok else 'FAIL'}  {safe(each.task)}  {each.agent}  {reward}  {each.seconds:.1f} s",
        markup=False,
    )
    if not each.ok:
        console.print(
            f"      {safe(each.detail)}\n      → {safe(each.cure)}", style="bold", markup=False, highlight=False
        )
        if each.said:
            console.print("      | " + safe_lines(each.said).replace("\n", "\n      | "), markup=False, highlight=False)
