"""What the commands that take a recipe share: their options, the recipe read and checked, the cluster's sandboxes.

In: what was typed. Out: a RunConfig whose model is there; this process told where its sandboxes are. Leaves what is
done with it to train.py, rollout.py, plan.py and evaluate.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rockroll.errors import RockrollError, UsageError

if TYPE_CHECKING:
    from rockroll.controller.config import RunConfig
    from rockroll.controller.run_dir import RunDir
    from rockroll.observe.display import Display
    from rockroll.recipe.changes import Change

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe, such as recipes/quickstart.yaml.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrule one key: --set train.lr=0.001 (again for more)."),
]
Ray = Annotated[
    str,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        envvar="ROCKROLL_RAY",
        help="On the nodes of a Ray cluster: auto for the one this machine is in, or HEAD:PORT.",
    ),
]
NodesWithin = Annotated[
    str,
    typer.Option(
        "--nodes-within",
        metavar="DURATION",
        envvar="ROCKROLL_NODES_WITHIN",
        help="With --ray: wait so long, as in 10m, for nodes that an autoscaler is to bring. Default: not at all.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load(recipe: Path, settings: list[str] | None) -> RunConfig:
    from rockroll.controller.model_path import find
    from rockroll.recipe.load import load

    config = load(recipe, settings)
    find(config.model)
    return config


def sandboxes(config: RunConfig, address: str, within: str) -> None:
    """The run's sandboxes will be on the nodes of the cluster; what was set by hand stays.

    within: as --nodes-within."""
    from rockroll.controller.boxes import pool_sizes
    from rockroll.placement.on_ray.joining import NODES_WITHIN, nodes_within
    from rockroll.placement.ray import sandboxes_of_run
    from rockroll.sandbox.where import CLUSTER

    os.environ[NODES_WITHIN] = within
    nodes_within()  # what is no time is told of before anything else
    if config.samples and pool_sizes(config) and CLUSTER not in os.environ:
        file, missing = sandboxes_of_run(address)
        if missing:
            typer.echo(f"rockroll: {missing}", err=True)
        if file is not None:
            os.environ[CLUSTER] = str(file)


def changes(run: RunDir, config: RunConfig) -> list[Change]:
    """How the recipe differs from the one that the run was begun with. UsageError where it may not."""
    from rockroll.recipe import changes
    from rockroll.recipe.load import load

    found = changes.changes(load(run.path / "recipe.yaml"), config)
    changes.check(found, done=(run.steps() or [0])[-1])
    return found


def log_to(path: Path, config: RunConfig) -> None:
    from rockroll import logs

    logs.begin(path, config.records.most("logs_keep"))


@contextlib.contextmanager
def resumable(command: str, run: RunDir, display: Display, ray: str) -> Iterator[None]:
    """The live display of work in a run's directory; where that ends early, its last line is how it goes on."""
    try:
        with display:
            display.line(f"run directory: {run.path}")
            yield
    except (KeyboardInterrupt, RockrollError) as error:
        if not isinstance(error, UsageError):
            again = f"rockroll {command} {run.path / 'recipe.yaml'} --run-dir {run.path} --resume"
            again += f" --ray {ray}" if ray else ""
            display.line(f"stopped; continue with: {again}")
        raise
