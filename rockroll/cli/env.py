"""`rockroll env`: the tasks there are, a contract test for one's own, and what a reference solver does in one.

In: command lines. Out: tables, or JSON with --json; `check` ends with exit code 1 where a rule is broken; `demos`
writes a file. Leaves the rules to env/check.py and the demonstrations to data/demonstrations.py, imported on use.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rockroll.cli.arguments import Json
from rockroll.cli.show import print_json, print_table
from rockroll.cli.text import safe
from rockroll.errors import UsageError

app = typer.Typer(
    help="The tasks there are, a contract test for your own, and demonstrations of one.", no_args_is_help=True
)
MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red"), "skipped": ("-", "dim")}


@app.command()
def ls(
    library: Annotated[
        str | None, typer.Argument(metavar="LIBRARY", help="List this one's, as gymnasium, gem; it is imported.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List rockroll's own tasks, and the libraries whose environments have a name here.

    Examples:

      rockroll env ls

      rockroll env ls gymnasium
    """
    from rockroll.env.library import LIBRARIES
    from rockroll.env.registry import BUILT_IN, find

    if library is not None:
        prefix = library.rstrip(":")
        if prefix not in LIBRARIES:
            raise UsageError(f"a library is one of {', '.join(LIBRARIES)}; got {library!r}")
        any_name: Any = find(LIBRARIES[prefix].example)
        names = [f"{prefix}:{name}" for name in any_name.names()]
        print_json(names) if as_json else print(*map(safe, names), sep="\n")
        return
    own = [(name, _about(place)) for name, place in sorted(BUILT_IN.items())]
    if as_json:
        others = [
            {"prefix": prefix, "about": each.says, "installed": each.installed, "install": each.package}
            for prefix, each in LIBRARIES.items()
        ]
        print_json({"built_in": [{"name": name, "about": about} for name, about in own], "libraries": others})
        return
    print_table(["TASK", "WHAT IT IS"], [[name, about] for name, about in own])
    print()
    rows = [
        [each.example, each.says, "installed" if each.installed else f"pip install {each.package}"]
        for each in LIBRARIES.values()
    ]
    print_table(["LIBRARY, AS IN", "WHAT IT IS", "HERE"], rows)
    print("\nYour own is module:Class, looked for in this folder too; try it out with: rockroll env check module:Class")


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="module:Class, or any name that a recipe may say.")],
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of its constructor, value as in YAML. Again for each."),
    ] = None,
    action: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Play with this answer, drawn among all given.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="An episode should have ended by then.")] = 1000,
    limit: Annotated[float, typer.Option(min=0.1, help="Seconds that a single call may take.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Play a task as training will, and say what is wrong with it; exit code 1 if something is.

    It is stepped with answers drawn at random and with nonsense, twice with one seed, and two episodes at once.

    Examples:

      rockroll env check my_tasks:Guess --option highest=9 --action 3 --action 7

      rockroll env check gymnasium:CartPole-v1
    """
    from rockroll.env.check import check as tried

    report = tried(name, _options(option or []), actions=action or (), steps=steps, limit=limit)
    if as_json:
        import msgspec

        checks = [{**msgspec.structs.asdict(finding), "ok": finding.level != "fail"} for finding in report.findings]
        print_json({"ok": report.ok, "task": report.task, "kind": report.kind, "checks": checks})
    else:
        _show(report)
    if any("did not come back" in finding.detail for finding in report.findings):
        # The call still runs in its thread, which nothing ends but the end of the process.
        sys.stdout.flush()
        os._exit(1)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def demos(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A task with a solver, as rockroll:sokoban; module:Class.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Where to; what is there is replaced.")],
    count: Annotated[int, typer.Option(min=1, help="How many conversations.")] = 4096,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of its constructor, value as in YAML. Again for each."),
    ] = None,
    noise: Annotated[float, typer.Option(help="Share of the answers that are random ones, from 0 to below 1.")] = 0.0,
    max_turns: Annotated[int, typer.Option(min=1, help="Longer conversations are left out.")] = 64,
    seed: Annotated[int, typer.Option(help="Another one gives other conversations.")] = 0,
    as_json: Json = False,
) -> None:
    """Write demonstrations: a task's own solver plays training's situations, and passes in each.

    A line is one conversation, as an episode of a run would have had it: what `data.path` of an sft recipe reads.
    A recipe may also make them as it goes, without a file: data: {path: rockroll:demonstrations} (docs/objectives.md).

    Examples:

      rockroll env demos rockroll:sokoban --count 10000 --out sokoban.jsonl --option level=easy

      rockroll env demos my_tasks:Guess --noise 0.2 --out weak.jsonl
    """
    import asyncio

    from rockroll.data.demonstrations import Demonstrations, write

    if not out.parent.is_dir():
        raise UsageError(f"--out is a file in a folder that is there; got {out}: make {out.parent} first")
    try:
        made = Demonstrations(name, _options(option or []), count, noise, max_turns, seed)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    asyncio.run(write(made, out))
    spoilt = made.tried - count
    if as_json:
        print_json({"file": str(out), "demonstrations": count, "left_out": spoilt})
        return
    print(
        f"{count:,} demonstrations in {safe(str(out))}"
        + (f"; {spoilt:,} that did not pass are left out" * bool(spoilt))
    )


@app.command()
def scores(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="As in a recipe; none: rockroll's own.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of its constructor, in place of its levels. Again for each."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Held-out episodes of each policy.")] = 200,
    turns: Annotated[int, typer.Option(min=1, help="An episode is over then.")] = 1000,
    as_json: Json = False,
) -> None:
    """What a solver earns in an environment, and what chance does, at each of its levels: what there is to learn.

    It plays the task's own expert_action() and sample_random_action() over situations of evaluation. SHARED is how many
    of these occur in training, too.

    Examples:

      rockroll env scores rockroll:sokoban

      rockroll env scores my_tasks:Guess --option highest=9 --turns 4
    """
    from rockroll.env.registry import BUILT_IN, find
    from rockroll.env.scores import scores as scored

    if option and not names:
        raise UsageError("--option is of one environment: name it, as in rockroll env scores rockroll:sokoban")
    tasks = names or [name for name in sorted(BUILT_IN) if hasattr(find(name), "expert_action")]
    found = [score for name in tasks for score in scored(name, _options(option or []), episodes=episodes, turns=turns)]
    if as_json:
        import msgspec

        print_json([msgspec.structs.asdict(score) for score in found])
        return
    rows = [
        [
            each.task,
            each.level,
            f"{each.random:.2f}",
            f"{each.reference:.2f}",
            "-" if each.shared is None else each.shared,
        ]
        for each in found
    ]
    print_table(["TASK", "LEVEL", "RANDOM", "REFERENCE", "SHARED"], [[str(cell) for cell in row] for row in rows])


def _options(said: list[str]) -> dict[str, Any]:
    import yaml

    options: dict[str, Any] = {}
    for each in said:
        key, equals, value = each.partition("=")
        if not equals or not key:
            raise UsageError(f"--option is KEY=VALUE; got {each!r}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--option {key}: the value is no YAML: {error}") from None
    return options


def _about(place: str) -> str:
    """The first sentence of the file that has the task."""
    import importlib

    said = importlib.import_module(place.partition(":")[0]).__doc__ or ""
    return said.strip().partition("\n")[0].rstrip(".")


def _show(report: Any) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in report.findings:
        mark, colour = MARKS[finding.level]
        detail = Text(safe(finding.detail))
        if finding.cure and finding.level != "ok":
            detail.append(f"\n→ {finding.cure}", "bold")
        table.add_row(Text(mark, colour), finding.name, detail)
    console = Console()
    console.print(table)
    broken = sum(finding.level == "fail" for finding in report.findings)
    if broken:
        console.print(f"{safe(report.task)} breaks {broken} of these rules.", style="red", markup=False)
    else:
        console.print(f"{safe(report.task)} keeps the contract of a task.", style="green", markup=False)
