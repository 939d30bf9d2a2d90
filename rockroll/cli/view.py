"""`rockroll view RUN_DIR…`: a run to be looked at.

In: run directories, or folders of them. Out: a local web page until Ctrl-C; with --export one episode as a single HTML
file on standard output. Leaves the pages to rockroll/view/.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rockroll.errors import UsageError

if TYPE_CHECKING:
    from rockroll.view.runs import Runs


def view(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN_DIR", help="Runs, or folders of runs. Default: $ROCKROLL_HOME/runs."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every one of this machine's.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8701,
    no_token: Annotated[bool, typer.Option("--no-token", help="Ask nobody for a token; on the loopback only.")] = False,
    export: Annotated[
        str | None, typer.Option(metavar="EPISODE", help="Write this episode as one HTML file to standard output.")
    ] = None,
) -> None:
    """Look at runs on a local web page, while they train or afterwards, until Ctrl-C.

    Curves of every metric, runs compared, groups and their spread, and each episode as a conversation and token by
    token: what was trained, log-prob, advantage, weight version. docs/view.md shows it. Open the address that is
    printed: it carries a token made for this start. Nothing is loaded from anywhere else.

    Examples:

      rockroll view ~/.rockroll/runs/quickstart-20260101-120000

      rockroll view                                   (all runs of this home)

      rockroll view RUN_DIR --export train-3-0-0-57 > episode.html

      ssh -L 8701:127.0.0.1:8701 bighost rockroll view RUN_DIR
    """
    from rockroll import home
    from rockroll.view.runs import Runs

    shown = Runs(runs or [home.runs_dir()])
    if export is not None:
        try:
            sys.stdout.write(_exported(shown, export))
        finally:
            shown.close()
        return
    import secrets

    from rockroll.cli.loop import run
    from rockroll.view.server import serve

    def ready(url: str) -> None:
        print(f"open {url}  ({len(shown)} run{'s' if len(shown) > 1 else ''}; Ctrl-C ends it)", flush=True)

    try:
        run(serve(shown, host, port, None if no_token else secrets.token_urlsafe(24), ready))
    except KeyboardInterrupt:
        print("rockroll: ended", file=sys.stderr)


def _exported(runs: Runs, id: str) -> str:
    from rockroll.view.episode_page import EpisodePages, Place
    from rockroll.view.episodes import Episodes
    from rockroll.view.vocabulary import Vocabularies

    for run in runs:
        for _ in run.refreshing():
            pass
        if (row := Episodes(run).named(id)) is not None:
            return EpisodePages(runs, Vocabularies()).export(Place(run, row))
    raise UsageError(
        f"--export names an episode of the run; none of {', '.join(run.name for run in runs)} has a record of {id!r}: "
        "`rockroll view` lists those that there are, and one at work has no record yet"
    )
