"""`rockroll doctor`: what this host can do, each defect with its cure.

In: nothing. Out: a table, or JSON with --json; exit code 1 if sandboxes cannot run.
Leaves the checks to sandbox/doctor.py and engine/kinds.py, imported on use: aiohttp would make every command slower.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rockroll.sandbox.doctor import Check, Report


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ray: Annotated[
        str,
        typer.Option("--ray", metavar="ADDRESS", help="Check every node of that Ray cluster instead: auto, HEAD:PORT."),
    ] = "",
) -> None:
    """Check what this host can do; exit code 1 if sandboxes cannot run.

    Of a cluster, every node at once; exit code 1 if one cannot take part: rockroll doctor --ray auto
    """
    if ray:
        _cluster(ray, json)
        return
    from rockroll.sandbox.doctor import examine

    report = asyncio.run(examine())
    report = msgspec.structs.replace(report, checks=[*report.checks, *_engines()])
    if json:
        checks = [{"name": c.name, "ok": c.ok, "detail": c.detail, "cure": c.cure} for c in report.checks]
        typer.echo(msgspec.json.encode({"ok": report.ok, "checks": checks}))
    else:
        _show(report)
    if not report.ok:
        raise typer.Exit(1)


def _cluster(address: str, json: bool) -> None:
    """A row for each node."""
    from rockroll.placement.ray import examined

    reports = examined(address)
    if json:
        typer.echo(msgspec.json.encode({"ok": all(each.ok for each in reports), "nodes": reports}))
    else:
        table = Table("", "node", "host", "free for Ray", "rockroll, Python, torch", "sandboxes", "what is wrong")
        for each in reports:
            mark = Text("ok", "green") if each.ok else Text("no", "red")
            found = ", ".join(msgspec.structs.astuple(each.versions)) if each.versions else ""
            boxes = Text("yes", "green") if each.sandboxes else Text("no", "yellow")
            table.add_row(mark, each.node, each.host, each.has, found, boxes, Text("\n".join(each.wrong)))
        Console().print(table)
    if not all(each.ok for each in reports):
        raise typer.Exit(1)


def _engines() -> list[Check]:
    """Which engines can run here; a sandbox needs none."""
    from rockroll.engine.kinds import kinds
    from rockroll.sandbox.doctor import Check

    return [Check(f"engine {kind.name}", kind.ok, kind.detail, kind.cure) for kind in kinds()]


def _show(report: Report) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in report.checks:
        mark = Text("ok", "green") if check.ok else Text("no", "red" if check.needed else "yellow")
        detail = Text(check.detail)
        if check.cure:
            detail.append(f"\n→ {check.cure}", "bold")
        table.add_row(mark, check.name, detail)
    console = Console()
    console.print(table)
    if report.ok:
        console.print("Sandboxes can run here.", style="green")
    elif [check.name for check in report.checks if check.needed and not check.ok] == ["limits"]:
        console.print("Sandboxes run here without limits only, and only where that is allowed.", style="red")
    else:
        console.print("Sandboxes cannot run here: cure what is marked no in red.", style="red")
