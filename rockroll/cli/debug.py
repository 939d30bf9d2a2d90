"""`rockroll debug ID`: your terminal in a shell inside a sandbox.

In: an id (or an episode of a run) and a terminal. Out: the shell's exit code. Leaves starting the shell to the node
(sandbox/exec/terminal.py) and the terminal's bytes to cli/console.py; no session of the SDK is touched.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rockroll.cli.text import safe
from rockroll.errors import SandboxError, SandboxNotFound, UsageError


def debug(
    id: Annotated[str, typer.Argument(metavar="ID", help="An id, the beginning of one, a name, or RUN_DIR/EPISODE.")],
    session: Annotated[
        str | None, typer.Option(help="Begin with a copy of this session: its folder, variables, functions, options.")
    ] = None,
) -> None:
    """Open a shell on your terminal inside a running sandbox; `exit` or Ctrl-D leaves it and the sandbox goes on.

    Nothing that runs in the sandbox is disturbed, and no command's timeout ends your shell.

    Examples:

      rockroll debug demo

      rockroll debug demo --session build
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "debug needs a terminal, and standard input or output is none; "
            f"without one: rockroll sandbox exec {id} --session debug -- CMD"
        )
    target = _of_episode(Path(id)) if "/" in id else id
    from rockroll.cli import console
    from rockroll.cli.loop import run

    console.guard(sys.stdin.fileno())
    raise typer.Exit(run(_attach(target, session)))


async def _attach(id: str, session: str | None) -> int:
    from rockroll.cli import console
    from rockroll.sandbox import where
    from rockroll.sandbox.node_client import close_node, connect_to
    from rockroll.sandbox.wire import Ref, SandboxInfo, Terminal, TerminalEnd

    node = await connect_to(where.server())
    try:
        info = await node.call("sandbox.get", Ref(id=id), type=SandboxInfo)
        if info.state != "running":
            raise SandboxError(
                f"sandbox {info.id} is {info.state}, and a shell needs a running one; "
                f"try: rockroll sandbox start {info.id}"
            )

        async def shell(socket: str, rows: int, columns: int) -> TerminalEnd:
            term = os.environ.get("TERM", "xterm")
            body = Terminal(id=info.id, console=socket, session=session, term=term, rows=rows, columns=columns)
            return await node.call("sandbox.terminal", body, type=TerminalEnd)

        end = await console.show(shell, sys.stdin.fileno(), sys.stdout.fileno())
    finally:
        await close_node()
    if end.note:
        print(f"rockroll: {safe(end.note)}", file=sys.stderr)
    return end.exit_code


def _of_episode(path: Path) -> str:
    """The sandbox of an episode, by the run's own records. SandboxNotFound says what they know."""
    import msgspec

    run, episode = path.parent, path.name
    if not (run / "episodes").is_dir():
        raise UsageError(f"{run} is no run directory (it has no episodes/); debug takes ID or RUN_DIR/EPISODE")
    for file in sorted((run / "episodes").glob("*.jsonl")):
        for line in file.read_bytes().splitlines():
            if episode.encode() not in line:
                continue
            record = msgspec.json.decode(line)
            if record.get("id") != episode:
                continue
            if record.get("sandbox"):
                return str(record["sandbox"])
            raise SandboxNotFound(
                f"episode {episode} ({file.stem}) has ended with outcome {record.get('outcome')}, and its sandbox went "
                "back to the pool; `rockroll sandbox ls` lists those that live"
            )
    raise SandboxNotFound(
        f"{run} has no record of an episode {episode} (one that still runs gets its record at the end of its step); "
        "`rockroll sandbox ls` lists the sandboxes that live"
    )
