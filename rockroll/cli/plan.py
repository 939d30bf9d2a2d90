"""`rockroll plan`.

In: a recipe file and settings. Out: the resolved recipe and what would run where, on the screen. Starts nothing. Leaves
the sums to recipe/plan.py and the places to placement/.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from rockroll.cli.recipes import AsJson, Ray, Recipe, Settings, load
from rockroll.errors import HostError

if TYPE_CHECKING:
    from rockroll.controller.config import RunConfig


def plan(recipe: Recipe, settings: Settings = None, as_json: AsJson = False, ray: Ray = "") -> None:
    """Show the resolved recipe and what would run where. Starts nothing.

    On a cluster, also on which node, and what is missing there, with exit code 1:

      rockroll plan recipes/quickstart.yaml --ray auto
    """
    from rich.console import Console
    from rich.syntax import Syntax
    from rich.table import Table

    from rockroll.recipe import plan as planning
    from rockroll.recipe.load import dump

    config = load(recipe, settings)
    placed = _placed(config, ray) if ray else None
    if as_json:
        print(json.dumps(planning.as_json(config) | ({"ray": placed} if placed else {})))
        if placed and placed["missing"]:
            raise typer.Exit(1)
        return
    lines = planning.plan(config)
    console = Console()
    console.print(Syntax(dump(config), "yaml", background_color="default"))
    table = Table("part", "where", "what", title=f"{config.name}: what would run")
    for line in lines:
        table.add_row(line.part, "the cluster" if ray and "machine" in line.where else line.where, line.what)
    console.print(table)
    if placed is None:
        return
    table = Table("process", "needs", "node", title=f"on the cluster at {ray}")
    for each in placed["processes"]:
        table.add_row(each["name"], each["needs"], each["node"] or "[red]none has room[/]")
    console.print(table)
    if placed["missing"]:
        raise HostError(f"--ray {ray}: {placed['missing']}")


def _placed(config: RunConfig, address: str) -> dict[str, Any]:
    """Which node each process would get, as plain values."""
    from rockroll.controller.model_path import find
    from rockroll.controller.needs import needs
    from rockroll.placement.needs import Needs
    from rockroll.placement.ray import planned

    wanted: dict[str, Needs] = {}

    def wants(gpus: float) -> dict[str, Needs]:
        model = find(config.model)
        wanted.update(needs(config, None if model.todo else model.folder, gpus=gpus))
        return wanted

    found = planned(address, wants)
    processes = [
        {"name": name, "needs": str(each), "node": room.name if (room := found.places.get(name)) else None}
        for name, each in wanted.items()
    ]
    return {"processes": processes, "missing": found.missing}
