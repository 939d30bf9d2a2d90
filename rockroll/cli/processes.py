"""`rockroll sandbox logs | ps | kill | env | stats`: what runs in a sandbox, and what it printed and uses.

In: the command line. Out: the log's bytes, tables for people, JSON with --json. Leaves finding it out to the node.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rockroll.cli.arguments import Id, Json, Raw, pairs
from rockroll.cli.loop import run
from rockroll.cli.node import attached
from rockroll.cli.show import print_json, print_table
from rockroll.cli.text import Output, safe
from rockroll.units import show_size

if TYPE_CHECKING:
    from rockroll.sandbox.wire import ProcessInfo

HEADER = ["PID", "PARENT", "USER", "STATE", "CPU", "MEMORY", "SESSION", "COMMAND"]
WIDTH = 120
"""Characters of a command line; --json has all of it."""


def logs(
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sandbox is gone, or Ctrl-C.")] = False,
    offset: Annotated[int, typer.Option(min=0, help="Begin at this byte of the log.")] = 0,
    tail: Annotated[int | None, typer.Option(min=0, help="Begin with the last N lines.")] = None,
    raw: Raw = False,
) -> None:
    """Print what the commands of a sandbox printed, sessions and programs alike.

    Examples:

      rockroll sandbox logs demo --tail 20 -f

      rockroll sandbox logs demo --offset 4096
    """

    async def work() -> None:
        shown = Output(sys.stdout.buffer, raw)
        try:
            async with attached(id) as sandbox:
                begin = offset
                if tail is not None:
                    kept, begin = await _last_lines(sandbox.logs(offset=offset), tail, offset)
                    shown.write(kept)
                if tail is None or follow:
                    async for data in sandbox.logs(offset=begin, follow=follow):
                        shown.write(data)
        finally:
            shown.end()

    run(work())


def ps(id: Id, as_json: Json = False) -> None:
    """List the processes of a sandbox: pids as the sandbox numbers them, and what each uses.

    Example:

      rockroll sandbox ps demo
    """
    import msgspec

    async def work() -> list[ProcessInfo]:
        async with attached(id) as sandbox:
            return await sandbox.processes()

    found = run(work())
    if as_json:
        print_json([msgspec.structs.asdict(each) for each in found])
    else:
        print_table(HEADER, [_row(each) for each in found])


def kill(
    id: Id,
    pid: Annotated[int, typer.Argument(metavar="PID", help="As `ps` shows it.")],
    signal: Annotated[str, typer.Option("--signal", "-s", help="A name or number, as in TERM, INT or 9.")] = "TERM",
) -> None:
    """Send a signal to one process of a sandbox.

    Example:

      rockroll sandbox kill demo 27 --signal INT
    """

    async def work() -> None:
        async with attached(id) as sandbox:
            await sandbox.signal(pid, signal)

    run(work())


def env(
    id: Id,
    changes: Annotated[list[str] | None, typer.Argument(metavar="K=V", help="Variables to set.")] = None,
    unset: Annotated[list[str] | None, typer.Option(metavar="K", help="A variable to remove.")] = None,
    as_json: Json = False,
) -> None:
    """Show the variables of a sandbox, or set some for what runs in it from now on, open sessions included.

    Examples:

      rockroll sandbox env demo

      rockroll sandbox env demo STAGE=two --unset DEBUG
    """
    wanted = {**pairs("env", changes), **dict.fromkeys(unset or ())}

    async def work() -> dict[str, str]:
        async with attached(id) as sandbox:
            return await sandbox.set_env(wanted) if wanted else await sandbox.env()

    found = run(work())
    if as_json:
        print_json(found)
    elif not wanted:
        for key in sorted(found):
            print(f"{key}={safe(found[key])}")


def stats(id: Id, as_json: Json = False) -> None:
    """Show what a sandbox uses: CPU time, memory, processes, disk."""

    async def work() -> dict[str, Any]:
        import msgspec

        async with attached(id) as sandbox:
            return msgspec.structs.asdict(await sandbox.stats())

    seen = run(work())
    if as_json:
        print_json(seen)
        return
    memory, processes = seen["memory_limit"], seen["pids_limit"]
    rows = [
        ["cpu", f"{seen['cpu_s']:.2f} s"],
        ["memory", f"{show_size(seen['memory_bytes'])} of {show_size(memory) if memory else 'no limit'}"],
        ["processes", f"{seen['pids']} of {processes or 'no limit'}"],
        ["killed for memory", str(seen["oom_kills"])],
        [
            "disk",
            show_size(seen["disk_bytes"]) + (f" of {show_size(seen['disk_limit'])}" if seen["disk_limit"] else ""),
        ],
    ]
    print_table(None, rows)


def _row(process: ProcessInfo) -> list[str]:
    """The cells under HEADER."""
    command = process.command if len(process.command) <= WIDTH else process.command[: WIDTH - 3] + "..."
    return [
        str(process.pid),
        str(process.parent),
        process.user,
        process.state,
        f"{process.cpu_s:.2f}",
        show_size(process.memory_bytes),
        process.session or "-",
        command,
    ]


async def _last_lines(log: AsyncIterator[bytes], count: int, offset: int) -> tuple[bytes, int]:
    """The last `count` lines of a log that begins at `offset`, and the offset at its end."""
    kept = b""
    async for data in log:
        offset += len(data)
        kept = _tail(kept + data, count)
    return kept, offset


def _tail(data: bytes, count: int) -> bytes:
    begin = len(data) - data.endswith(b"\n")
    for _ in range(count):
        begin = data.rfind(b"\n", 0, begin)
        if begin < 0:
            return data
    return data[begin + 1 :] if count else b""
