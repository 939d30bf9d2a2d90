"""`rockroll debug ID`: your terminal in a shell inside a sandbox.

In: an id (or an episode of a run) and a terminal. Out: the shell's exit code. Leaves starting the shell to the node
(sandbox/exec/terminal.py; far_terminal.py on another host) and the terminal's bytes to cli/console.py; no session of
the SDK is touched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Annotated

import typer

from rockroll.cli.server_option import ClusterFile, RayAddress, chosen
from rockroll.cli.text import safe
from rockroll.errors import SandboxError, SandboxNotFound, UsageError


def debug(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(metavar="ID", help="An id, the beginning of one, a name, or RUN_DIR/EPISODE.")],
    session: Annotated[
        str | None, typer.Option(help="Begin with a copy of this session: its folder, variables, functions, options.")
    ] = None,
    cluster: ClusterFile = None,
    ray: RayAddress = None,
) -> None:
    """Open a shell on your terminal inside a running sandbox; `exit` or Ctrl-D leaves it and the sandbox goes on.

    Nothing that runs in the sandbox is disturbed, and no command's timeout ends your shell.

    Examples:

      rockroll debug demo

      rockroll debug demo --session build

      rockroll debug --cluster cluster.json demo

      rockroll debug ~/.rockroll/runs/quickstart-20260101-120000/train-3-0-0-57

    In a cluster the sandbox may be on any node. The last is an episode at work: `rockroll view RUN_DIR` names those
    that are. What an episode that has ended did is shown by `rockroll view RUN_DIR --export EPISODE > episode.html`;
    its sandbox is another's by then.
    """
    ctx.with_resource(chosen(None, cluster, ray))
    target = _of_episode(Path(id)) if "/" in id else id
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "debug needs a terminal, and standard input or output is none; "
            f"without one: rockroll sandbox exec {target} --session debug -- CMD"
        )
    from rockroll.cli import console
    from rockroll.cli.loop import run

    console.guard(sys.stdin.fileno())
    raise typer.Exit(run(_attach(target, session)))


async def _attach(id: str, session: str | None) -> int:
    from rockroll.cli import console
    from rockroll.sandbox import where
    from rockroll.sandbox.node_client import close_node, connect_to
    from rockroll.sandbox.wire import Ref, SandboxInfo, Terminal, TerminalEnd, TerminalInput, TerminalOutput

    at = where.place()
    if isinstance(at, where.Server):
        raise UsageError(
            f"debug does not go through a server ({at.base_url}); run it on the sandbox's host, or with --cluster FILE"
        )
    node = await connect_to(at)
    try:
        info = await node.call("sandbox.get", Ref(id=id), type=SandboxInfo)
        if info.state != "running":
            raise SandboxError(
                f"sandbox {info.id} is {info.state}, and a shell needs a running one; "
                f"try: rockroll sandbox start {info.id}"
            )

        def asked(socket: str, rows: int, columns: int) -> Terminal:
            term = os.environ.get("TERM", "xterm")
            return Terminal(id=info.id, console=socket, session=session, term=term, rows=rows, columns=columns)

        async def here(socket: str, rows: int, columns: int) -> TerminalEnd:
            return await node.call("sandbox.terminal", asked(socket, rows, columns), type=TerminalEnd)

        def there(rows: int, columns: int, keys: AsyncIterator[TerminalInput]) -> AsyncGenerator[TerminalOutput, None]:
            return node.stream("terminal.open", asked("", rows, columns), type=TerminalOutput, parts=keys)

        terminal = sys.stdin.fileno(), sys.stdout.fileno()
        end = await (console.show(here, *terminal) if at is None else console.show_far(there, *terminal))
    finally:
        await close_node()
    if end.note:
        print(f"rockroll: {safe(end.note)}", file=sys.stderr)
    return end.exit_code


def _of_episode(path: Path) -> str:
    """The sandbox of an episode at work. SandboxNotFound says what the run's records know of one that is not."""
    from rockroll.observe.index import EpisodeIndex
    from rockroll.observe.running import read
    from rockroll.sandbox import where

    run, episode = path.parent, path.name
    if not (run / "episodes").is_dir():
        raise UsageError(f"{run} is no run directory (it has no episodes/); debug takes ID or RUN_DIR/EPISODE")
    if (said := read(run, episode)) is not None:
        sandbox, node = str(said["sandbox"]), str(said["node"])
        here = os.uname().nodename
        if where.place() is None and node != here:
            raise SandboxNotFound(
                f"episode {episode} works in sandbox {sandbox} on {node}, and this is {here}; there, run: "
                f"rockroll debug {sandbox}, or here with the --cluster FILE or --ray ADDRESS that the run had"
            )
        return sandbox
    index = EpisodeIndex(run / "episodes")
    try:
        for _ in index.refresh():
            pass
        with index.read() as database:
            row = database.execute("SELECT file, outcome FROM episodes WHERE id = ?", (episode,)).fetchone()
    finally:
        index.close()
    if row is None:
        raise SandboxNotFound(
            f"{run} has no record of an episode {episode}, and none of that name is in a sandbox now; "
            "`rockroll sandbox ls` lists the sandboxes that live"
        )
    raise SandboxNotFound(
        f"episode {episode} ({row['file'].removesuffix('.jsonl')}) has ended with outcome {row['outcome']}, and its "
        "sandbox went back to the pool; "
        f"to see what it did: rockroll view {run} --export {episode} > episode.html"
    )
