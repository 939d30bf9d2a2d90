"""`rockroll train`.

In: a recipe file and settings. Out: a run directory, a live display, a summary that says what to type next. Leaves
the work to controller/, which is imported only when it starts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rockroll.cli.recipes import NodesWithin, Ray, Recipe, Settings, changes, load, log_to, resumable, sandboxes
from rockroll.errors import UsageError

if TYPE_CHECKING:
    from rockroll.controller.config import RunConfig


def train(
    recipe: Recipe,
    settings: Settings = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run is kept. Default: $ROCKROLL_HOME/runs/NAME-TIME.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --run-dir, however it ended: kill -9, a full disk, Ctrl-C."),
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Train the recorded batches of that run: no engine, no sandboxes."),
    ] = None,
    dry_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Run so many steps that change no weight, and say what the whole run would take."),
    ] = None,
    ray: Ray = "",
    nodes_within: NodesWithin = "",
) -> None:
    """Train a model by the recipe.

    Example: rockroll train recipes/quickstart.yaml --set steps=5 --run-dir /tmp/first

    A run that was stopped, by whatever means, loses nothing that had ended; --resume trains every task once and has
    every step once in metrics.jsonl:
    rockroll train /tmp/first/recipe.yaml --run-dir /tmp/first --resume

    It may go on otherwise than it began, with more ranks, another ZeRO stage or dtype: add
    --set train.ranks=2 --set train.zero_stage=2

    Before a long run, a few whole steps at a learning rate of 0 say what it takes in time, tokens, memory, disk:
    rockroll train recipes/quickstart.yaml --dry-steps 3

    What a run sampled can be trained again, by another algorithm or learning rate, without an engine or sandboxes;
    `rockroll rollout` records batches without a trainer:
    rockroll train /tmp/first/recipe.yaml --replay /tmp/first --set train.lr=0.0001 --run-dir /tmp/second

    Rows go to other trackers too, and to Prometheus (docs/trackers.md):
    rockroll train recipes/quickstart.yaml --set 'track=\\[tensorboard, wandb]' --set metrics.prometheus=127.0.0.1:9100

    With --set deterministic=true two runs are equal to the last bit, but for time/* (docs/training.md).

    The same recipe on a cluster, with engines and trainer ranks on the nodes that have room for them (docs/cluster.md):
    rockroll train recipes/quickstart.yaml --ray auto

    Where Ray's autoscaler brings nodes when they are asked for, give it the time:
    rockroll train recipes/quickstart.yaml --ray auto --nodes-within 10m
    """
    from rockroll.append import write_whole
    from rockroll.cli.loop import run as run_loop
    from rockroll.controller import loop
    from rockroll.controller.run_dir import RunDir, default_path
    from rockroll.observe.display import Display, Status, summary
    from rockroll.recipe import plan as planning
    from rockroll.recipe.load import dump

    if resume and run_dir is None:
        raise UsageError("--resume continues the run in --run-dir; name that directory")
    if resume and dry_steps:
        raise UsageError("--dry-steps begins anew, with weights that stay what they are; leave --resume out")
    if replay is not None:
        settings = [*(settings or []), f"replay={json.dumps(str(replay.absolute()))}"]
    config = load(recipe, settings)
    if dry_steps is not None:
        _dry(config, dry_steps, run_dir, ray, nodes_within)
        return
    planning.plan(config)  # a teacher or a data set that is not there is found before the run has a directory
    if ray:
        sandboxes(config, ray, nodes_within)
    with RunDir(run_dir or default_path(config.name), resume=resume) as run:
        log_to(run.path / "rockroll.log", config)
        changed = changes(run, config) if resume else []
        write_whole(run.path / "recipe.yaml", dump(config).encode())
        display = Display(Status(config.name, config.steps))
        with resumable("train", run, display, ray):
            for change in changed:
                display.line(f"goes on with {change}")
            done = run_loop(loop.train(config, run, display, ray))
    rows = []
    if done.held_out is not None:
        rows.append(("held-out loss", f"{done.held_out[0]:.4f} before, {done.held_out[1]:.4f} after"))
    if done.first is not None and done.last is not None:
        rows.append(("held-out pass rate", f"{done.first:.1%} before, {done.last:.1%} after"))
    if done.ci95 is not None:
        rows.append(("95 % interval", f"{done.ci95[0]:.1%} to {done.ci95[1]:.1%} after"))
    things = "episodes" if config.data is None else "examples"
    rows.append(("trained", f"{done.episodes} {things} in {done.steps} steps, {done.seconds:.0f} s start to end"))
    rows.append(("run directory", str(done.run_dir)))
    if done.checkpoint is not None:
        rows.append(("model", str(done.checkpoint / "model")))
        if config.domains:
            rows.append(("next", f"rockroll eval {recipe} --model {done.checkpoint / 'model'}"))
        rows.append(("", f"rockroll view {done.run_dir}"))
        rows.append(("", f"tensorboard --logdir {done.run_dir / 'tensorboard'}"))
    summary(rows, f"rockroll · {config.name}")(display.console)


def _dry(config: RunConfig, steps: int, run_dir: Path | None, ray: str, nodes_within: str) -> None:
    """Runs dry steps, in a directory that goes afterwards where none is named, and prints what the whole run takes."""
    import dataclasses
    import shutil
    import tempfile
    from contextlib import ExitStack

    from rich.table import Table

    from rockroll.append import write_whole
    from rockroll.cli.loop import run as run_loop
    from rockroll.controller import forecast, loop
    from rockroll.controller.run_dir import RunDir
    from rockroll.controller.source import data_set
    from rockroll.observe.display import Display, Status
    from rockroll.recipe import plan as planning
    from rockroll.recipe.load import dump

    if (data := data_set(config)) is not None:
        config = dataclasses.replace(config, steps=data.steps(config.steps))
    dry = forecast.dry(config, steps)
    planning.plan(dry)
    if ray:
        sandboxes(dry, ray, nodes_within)
    with ExitStack() as stack:
        path = run_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rockroll-dry-")))
        run = stack.enter_context(RunDir(path, resume=False))
        log_to(run.path / "rockroll.log", config)
        write_whole(run.path / "recipe.yaml", dump(dry).encode())
        display = Display(Status(f"{config.name}, {steps} dry steps", steps))
        with display:
            run_loop(loop.train(dry, run, display, ray))
        lines = forecast.forecast(config, run.path)
        free = shutil.disk_usage(run.path).free
    table = Table("what", "each", "times", "whole run", title=f"{config.name}: {config.steps} steps would take")
    for line in lines:
        each, whole = forecast.shown(line.each, line.unit), forecast.shown(line.whole, line.unit)
        table.add_row(line.what, each, f"{line.times:,}", whole)
    display.console.print(table)
    seconds, disk = forecast.total(lines, "s"), forecast.total(lines, "bytes")
    display.line(f"in all about {forecast.shown(seconds, 's')}, if answers stay as long as they are now")
    display.line(f"disk {forecast.shown(disk, 'bytes')}; {forecast.shown(free, 'bytes')} are free where this one ran")
