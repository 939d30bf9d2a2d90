"""`rockroll rollout`.

In: a recipe file and settings. Out: a run directory with recorded batches, and what to type next. Leaves the work to
controller/collect.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rockroll.cli.recipes import NodesWithin, Ray, Recipe, Settings, changes, load, log_to, resumable, sandboxes
from rockroll.errors import UsageError


def rollout(
    recipe: Recipe,
    settings: Settings = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How many batches. Default: the recipe's steps.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where they are kept. Default: $ROCKROLL_HOME/runs/NAME-rollout-TIME.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue in --run-dir after the last whole batch.")] = False,
    ray: Ray = "",
    nodes_within: NodesWithin = "",
) -> None:
    """Sample batches without a trainer, and record them as a training run does.

    All are sampled with the weights of the recipe's model. The records can be looked at, and trained:

      rockroll rollout recipes/quickstart.yaml --steps 4 --run-dir /tmp/sampled

      rockroll view /tmp/sampled

      rockroll train recipes/quickstart.yaml --set steps=4 --replay /tmp/sampled

    On a cluster, with engines and sandboxes on its nodes (docs/cluster.md):

      rockroll rollout recipes/quickstart.yaml --steps 4 --ray auto
    """
    from rockroll.append import write_whole
    from rockroll.cli.loop import run as run_loop
    from rockroll.controller.collect import collect
    from rockroll.controller.run_dir import RunDir, default_path
    from rockroll.observe.display import Display, Status, summary
    from rockroll.recipe.load import dump

    if resume and run_dir is None:
        raise UsageError("--resume continues the batches in --run-dir; name that directory")
    config = load(recipe, [*(settings or []), *([f"steps={steps}"] if steps else [])])
    if ray:
        sandboxes(config, ray, nodes_within)
    with RunDir(run_dir or default_path(f"{config.name}-rollout"), resume=resume) as run:
        log_to(run.path / "rockroll.log", config)
        if resume:
            changes(run, config)
        write_whole(run.path / "recipe.yaml", dump(config).encode())
        display = Display(Status(f"{config.name}, rollout", config.steps))
        with resumable("rollout", run, display, ray):
            episodes = run_loop(collect(config, run, display, ray))
    rows = [("recorded", f"{episodes} episodes"), ("run directory", str(run.path))]
    rows.append(("next", f"rockroll train {recipe} --set steps={config.steps} --replay {run.path}"))
    rows.append(("", f"rockroll view {run.path}"))
    summary(rows, f"rockroll · {config.name}, rollout")(display.console)
