"""`rockroll train`, `plan` and `eval`.

In: a recipe file and settings. Out: a run directory, a live display, a summary that says what to type next. Leaves
the work to controller/, which is imported only when it starts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rockroll.errors import HostError, RockrollError, UsageError

if TYPE_CHECKING:
    from rockroll.controller.config import RunConfig
    from rockroll.controller.loop import Evaluation
    from rockroll.controller.run_dir import RunDir
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
_NOTHING = "eval.episodes is 0: there is nothing to evaluate; try --episodes 256"
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
    rockroll train recipes/quickstart.yaml --set 'track=[tensorboard, wandb]' --set metrics.prometheus=127.0.0.1:9100

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
    config = _load(recipe, settings)
    if dry_steps is not None:
        _dry(config, dry_steps, run_dir, ray, nodes_within)
        return
    planning.plan(config)  # a teacher or a data set that is not there is found before the run has a directory
    if ray:
        _sandboxes(config, ray, nodes_within)
    with RunDir(run_dir or default_path(config.name), resume=resume) as run:
        _log_to(run.path / "rockroll.log", config)
        changed = _changes(run, config) if resume else []
        write_whole(run.path / "recipe.yaml", dump(config).encode())
        display = Display(Status(config.name, config.steps))
        try:
            with display:
                display.line(f"run directory: {run.path}")
                for change in changed:
                    display.line(f"goes on with {change}")
                done = run_loop(loop.train(config, run, display, ray))
        except (KeyboardInterrupt, RockrollError) as error:
            if not isinstance(error, UsageError):
                again = f"rockroll train {run.path / 'recipe.yaml'} --run-dir {run.path} --resume"
                again += f" --ray {ray}" if ray else ""
                display.line(f"stopped; continue with: {again}")
            raise
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


def _sandboxes(config: RunConfig, address: str, within: str) -> None:
    """The run's sandboxes will be on the nodes of the cluster; what was set by hand stays.

    within: as --nodes-within."""
    from rockroll.controller.boxes import pool_sizes
    from rockroll.placement.ray import NODES_WITHIN, nodes_within, sandboxes_of_run
    from rockroll.sandbox.where import CLUSTER

    os.environ[NODES_WITHIN] = within
    nodes_within()  # what is no time is told of before anything else
    if config.samples and pool_sizes(config) and CLUSTER not in os.environ:
        file, missing = sandboxes_of_run(address)
        if missing:
            typer.echo(f"rockroll: {missing}", err=True)
        if file is not None:
            os.environ[CLUSTER] = str(file)


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
        _sandboxes(dry, ray, nodes_within)
    with ExitStack() as stack:
        path = run_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rockroll-dry-")))
        run = stack.enter_context(RunDir(path, resume=False))
        _log_to(run.path / "rockroll.log", config)
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
    config = _load(recipe, [*(settings or []), *([f"steps={steps}"] if steps else [])])
    if ray:
        _sandboxes(config, ray, nodes_within)
    with RunDir(run_dir or default_path(f"{config.name}-rollout"), resume=resume) as run:
        _log_to(run.path / "rockroll.log", config)
        if resume:
            _changes(run, config)
        write_whole(run.path / "recipe.yaml", dump(config).encode())
        display = Display(Status(f"{config.name}, rollout", config.steps))
        try:
            with display:
                display.line(f"run directory: {run.path}")
                episodes = run_loop(collect(config, run, display, ray))
        except (KeyboardInterrupt, RockrollError) as error:
            if not isinstance(error, UsageError):
                again = f"rockroll rollout {run.path / 'recipe.yaml'} --run-dir {run.path} --resume"
                again += f" --ray {ray}" if ray else ""
                display.line(f"stopped; continue with: {again}")
            raise
    rows = [("recorded", f"{episodes} episodes"), ("run directory", str(run.path))]
    rows.append(("next", f"rockroll train {recipe} --set steps={config.steps} --replay {run.path}"))
    rows.append(("", f"rockroll view {run.path}"))
    summary(rows, f"rockroll · {config.name}, rollout")(display.console)


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

    config = _load(recipe, settings)
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


def evaluate(
    recipe: Recipe,
    settings: Settings = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A run's directory (its last checkpoint), or a folder as RUN_DIR/checkpoints/step_N/model."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy. Default: the recipe's eval.temperature.")
    ] = None,
    episodes: Annotated[int | None, typer.Option(help="How many held-out tasks. Default: the recipe's.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="random|expert", help="In place of a model: the task's own random moves, or its reference solver."
        ),
    ] = None,
    as_json: AsJson = False,
    ray: Ray = "",
    nodes_within: NodesWithin = "",
) -> None:
    """The pass rate of a model on the recipe's held-out tasks, with its 95 % interval.

    Examples:

      rockroll eval recipes/quickstart.yaml --model /tmp/first --json

      rockroll eval recipes/sokoban.yaml --model runs/sokoban --episodes 512

      rockroll eval recipes/sokoban.yaml --policy random     # what chance scores on the same tasks

      rockroll eval recipes/quickstart.yaml --model /tmp/first --ray auto     # on a cluster's nodes (docs/cluster.md)
    """
    import dataclasses
    import tempfile

    from rich.console import Console

    from rockroll.cli.loop import run as run_loop
    from rockroll.controller import loop
    from rockroll.controller.run_dir import RunDir
    from rockroll.observe.display import Display, Status

    more = [f"eval.temperature={temperature}"] if temperature is not None else []
    more += [f"eval.episodes={episodes}"] if episodes is not None else []
    more += [f"model={json.dumps(str(model))}"] if model is not None else []
    if policy is not None:
        _show(_own(recipe, [*(settings or []), *more], policy, model), as_json)
        return
    config = _load(recipe, [*(settings or []), *more])
    if config.eval.episodes == 0:
        raise UsageError(_NOTHING)
    if ray:
        _sandboxes(dataclasses.replace(config, replay=""), ray, nodes_within)
    with tempfile.TemporaryDirectory(prefix="rockroll-eval-") as folder, RunDir(Path(folder), resume=False) as run:
        display = Display(Status(f"{config.name}, evaluation", 0), Console(stderr=True))
        with display:
            result = run_loop(loop.evaluate(config, run, display, ray))
    _show(result, as_json)


def _own(recipe: Path, settings: list[str], policy: str, model: Path | None) -> Evaluation:
    """What the task's own policy scores; the recipe's model need not be there."""
    from rockroll.cli.loop import run as run_loop
    from rockroll.controller import baseline
    from rockroll.recipe.load import load
    from rockroll.rollout.tasks import OWN

    if policy not in OWN:
        raise UsageError(f"--policy is {' or '.join(sorted(OWN))}; got {policy!r}")
    if model is not None:
        raise UsageError("--policy plays in place of a model: leave out --model, or --policy")
    config = load(recipe, settings)
    if config.eval.episodes == 0:
        raise UsageError(_NOTHING)
    return run_loop(baseline.evaluate(config, policy))  # type: ignore[arg-type]


def _show(result: Evaluation, as_json: bool) -> None:
    if as_json:
        said = {"pass_rate": result.pass_rate, "ci95": list(result.ci95), "episodes": result.episodes}
        tasks = {
            name: {"pass_rate": each.pass_rate, "ci95": list(each.ci95), "episodes": each.episodes}
            for name, each in result.tasks.items()
        }
        print(json.dumps({**said, "tasks": tasks} if tasks else said))
    else:
        for name, each in {"": result, **result.tasks}.items():
            low, high = each.ci95
            interval = f"95 % interval {low:.1%} to {high:.1%}, {each.episodes} episodes"
            print(f"{f'{name}: ' if name else ''}pass rate {each.pass_rate:.1%} ({interval})")


def _changes(run: RunDir, config: RunConfig) -> list[Change]:
    """How the recipe differs from the one that the run was begun with. UsageError where it may not."""
    from rockroll.recipe import changes
    from rockroll.recipe.load import load

    found = changes.changes(load(run.path / "recipe.yaml"), config)
    changes.check(found, done=(run.steps() or [0])[-1])
    return found


def _load(recipe: Path, settings: list[str] | None) -> RunConfig:
    from rockroll.controller.model_path import find
    from rockroll.recipe.load import load

    config = load(recipe, settings)
    find(config.model)
    return config


def _log_to(path: Path, config: RunConfig) -> None:
    from rockroll import logs

    logs.begin(path, config.records.most("logs_keep"))
