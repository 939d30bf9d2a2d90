"""`rockroll debug ID`: your terminal in a shell inside a sandbox.

In: an id and a terminal. Out: this process becomes `podman exec -it` under rockroll's containers.conf; it ends with
the shell's exit code. Leaves the sandbox as it was: no session of the SDK is touched.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rockroll.errors import SandboxError, UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.wire import SandboxInfo

SHELL = "if command -v bash >/dev/null 2>&1; then exec bash -i; else exec sh -i; fi"


def debug(
    id: Annotated[str, typer.Argument(metavar="ID", help="An id, the beginning of one, or a name.")],
) -> None:
    """Open a shell on your terminal inside a running sandbox; `exit` leaves it and the sandbox goes on.

    Example:

      rockroll debug demo
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "debug needs a terminal, and standard input or output is none; "
            f"without one: rockroll sandbox exec {id} --session debug -- CMD"
        )
    from rockroll.cli.loop import run

    argv, env = command(run(_look_up(id)), os.environ.get("TERM", "xterm"))
    sys.stdout.flush()
    os.execvpe(argv[0], argv, env)


def command(info: SandboxInfo, term: str) -> tuple[list[str], dict[str, str]]:
    """The argv and environment of the interactive shell. SandboxError where the sandbox does not run."""
    from rockroll import home
    from rockroll.sandbox import runtime

    if info.state != "running":
        raise SandboxError(
            f"sandbox {info.id} is {info.state}, and a shell needs a running one; try: rockroll sandbox start {info.id}"
        )
    env = runtime.environment()
    argv = [runtime.podman_binary(), "exec", "--interactive", "--tty", "--env", f"TERM={term}"]
    for key, value in info.env.items():
        argv += ["--env", f"{key}={value}"]
    return [*argv, f"rockroll-{home.home_id()}-{info.id}", "sh", "-c", SHELL], env


async def _look_up(id: str) -> SandboxInfo:
    from rockroll.sandbox.client import Sandbox
    from rockroll.sandbox.node_client import close_node

    try:
        return (await Sandbox.attach(id)).info
    finally:
        await close_node()
