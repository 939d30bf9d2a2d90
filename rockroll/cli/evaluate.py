"""`rockroll eval`.

In: a recipe file and settings, a model or a policy of the task's own. Out: pass rates with their intervals. Leaves the
work to controller/evaluation.py and controller/baseline.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rockroll.cli.recipes import AsJson, NodesWithin, Ray, Recipe, Settings, load, sandboxes
from rockroll.errors import UsageError

if TYPE_CHECKING:
    from rockroll.controller.evaluation import Evaluation


_NOTHING = "eval.episodes is 0: there is nothing to evaluate; try --episodes 256"


def evaluate(
    recipe: Recipe,
    settings: Settings = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="A run's directory (its last checkpoint), a folder as RUN_DIR/checkpoints/step_N/model, or whatever "
            "else a recipe's model may name. Default: the recipe's.",
        ),
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
    from rockroll.controller import evaluation
    from rockroll.controller.run_dir import RunDir
    from rockroll.observe.display import Display, Status

    more = [f"eval.temperature={temperature}"] if temperature is not None else []
    more += [f"eval.episodes={episodes}"] if episodes is not None else []
    more += [f"model={json.dumps(str(model))}"] if model is not None else []
    if policy is not None:
        _show(_own(recipe, [*(settings or []), *more], policy, model), as_json)
        return
    config = load(recipe, [*(settings or []), *more])
    if config.eval.episodes == 0:
        raise UsageError(_NOTHING)
    if ray:
        sandboxes(dataclasses.replace(config, replay=""), ray, nodes_within)
    with tempfile.TemporaryDirectory(prefix="rockroll-eval-") as folder, RunDir(Path(folder), resume=False) as run:
        display = Display(Status(f"{config.name}, evaluation", 0), Console(stderr=True))
        with display:
            result = run_loop(evaluation.evaluate(config, run, display, ray))
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
