"""The `rockroll` command.

In: the command line. Out: exit code 0 done, 1 failed, 2 wrong usage, 130 interrupted; errors as one line on stderr.
Leaves every command to its file in this folder, imported only for what it is: start-up stays under 0.3 s.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from rockroll import __version__
from rockroll.cli import (
    bench,
    cluster,
    debug,
    doctor,
    env,
    evaluate,
    image,
    model_service,
    plan,
    rollout,
    sandbox,
    serve,
    tasks,
    train,
    view,
)
from rockroll.cli.text import safe_lines
from rockroll.errors import RockrollError

# Early Typer raises Click's exceptions, later Typer those of its own copy of Click; this is the right one's base.
_WrongUsage: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="rockroll",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train LLM agents by reinforcement in sealed sandboxes.\n\n"
    "First steps: [bold]rockroll doctor[/bold] says what this host can do, "
    "[bold]rockroll train recipes/quickstart.yaml[/bold] trains a small model, "
    "[bold]rockroll sandbox up[/bold] starts a sandbox.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        print(f"rockroll {__version__}")
        raise typer.Exit


app.command("doctor")(doctor.doctor)
app.add_typer(sandbox.app, name="sandbox")
app.command("debug")(debug.debug)
app.command("serve")(serve.serve)
app.command("hub")(cluster.hub)
app.command("node")(cluster.node)
app.add_typer(cluster.app, name="cluster")
app.command("view")(view.view)
app.command("model-service")(model_service.model_service)
app.command("train")(train.train)
app.command("rollout")(rollout.rollout)
app.command("plan")(plan.plan)
app.command("eval")(evaluate.evaluate)
app.add_typer(env.app, name="env")
app.add_typer(tasks.app, name="tasks")
app.add_typer(image.app, name="image")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """One command line; the exit code."""
    try:
        code = app(arguments, prog_name="rockroll", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except RockrollError as error:
        if "--debug" in arguments:
            raise
        print(f"rockroll: {safe_lines(error.message)}", file=sys.stderr)
        return error.exit_code
    except _WrongUsage as error:
        error.show()
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        print("rockroll: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in arguments:
            raise
        said = f"{type(error).__name__}: {error}"
        print(f"rockroll: {safe_lines(said)} (a defect; --debug before the command shows where)", file=sys.stderr)
        return 1


if __name__ == "__main__":
    main()
