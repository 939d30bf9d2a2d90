"""`rockroll sandbox exec | follow | commands`: commands in a sandbox, their output as it comes.

In: the command line, standard input. Out: the command's bytes on the same two streams and its exit code. Leaves the
sandboxes themselves to boxes.py.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from rockroll.cli.arguments import Id, Json, Raw, seconds_of
from rockroll.cli.loop import run
from rockroll.cli.node import attached
from rockroll.cli.show import print_json, print_table
from rockroll.cli.text import Output
from rockroll.errors import UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.command import Command
    from rockroll.sandbox.wire import CommandInfo, Observation

CODES = {"timeout": 124, "oom": 137, "killed": 137, "lost": 1, "closed": 1}
"""Exit codes where the command gave none; 124 is what coreutils' timeout gives."""
MAX_OUTPUT = 64 << 20
"""Bytes of each stream that `exec` passes on."""
INPUT_PART = 1 << 18


def exec_(
    id: Id,
    command: Annotated[list[str], typer.Argument(metavar="-- CMD", help="The program and its arguments.")],
    session: Annotated[str | None, typer.Option(help="Run it in this Bash session, opened on first use.")] = None,
    timeout: Annotated[str | None, typer.Option(help="Kill it after this time, as in 30 or 5m; exit code 124.")] = None,
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Give it this command's standard input.")] = False,
    command_id: Annotated[str | None, typer.Option("--id", help="A name for it; the same name runs once.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print its id and leave it running.")] = False,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Run a command in a sandbox; its output, as it comes, and exit code become this command's own.

    Without --session: one program, no shell. With --session: a line for a Bash that stays, with its variables and its
    folder, from one `exec` to the next, whoever runs it; one argument is taken as shell code, several as words.
    Ctrl-C kills the command. With --detach it goes on: see `follow` and `commands`.

    Examples:

      rockroll sandbox exec demo -- python3 -c 'print(6 * 7)'

      rockroll sandbox exec demo --session s -- 'cd /srv && x=1'

      rockroll sandbox exec demo --session s --timeout 30 -- 'pwd; echo $x'

      tar c src | rockroll sandbox exec demo -i -- tar x -C /srv

      rockroll sandbox exec demo --detach --id build --session s -- make
    """
    if detach and stdin:
        raise UsageError("--detach leaves the command alone, so nobody would send it input: leave --stdin out")
    limit = seconds_of("--timeout", timeout)
    line = (command[0] if len(command) == 1 else shlex.join(command)) if session is not None else command

    async def work() -> Observation | None:
        async with attached(id) as sandbox:
            begun = await sandbox.start_command(
                line,
                session=session or "",
                stdin=stdin,
                timeout=limit,
                max_output=MAX_OUTPUT,
                command_id=command_id,
            )
            if detach:
                print(begun.id)
                return None
            try:
                return await _pass_on(begun, stdin=stdin, show=not as_json, raw=raw)
            except asyncio.CancelledError:
                await begun.cancel()
                raise

    _end(run(work()), limit, as_json)


def follow(
    id: Id,
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="The command's id, as `commands` lists it.")],
    offset: Annotated[int, typer.Option(min=0, help="Skip this many bytes of its output.")] = 0,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Show a command's output, from its beginning and as it comes; end with its exit code. Ctrl-C leaves it running.

    Example:

      rockroll sandbox follow demo build
    """

    async def work() -> Observation:
        async with attached(id) as sandbox:
            return await _pass_on(sandbox.command(command), offset=offset, show=not as_json, raw=raw)

    _end(run(work()), None, as_json)


def commands(id: Id, as_json: Json = False) -> None:
    """List a sandbox's commands: those under way and the last that ended, started by `exec` or by name.

    Example:

      rockroll sandbox commands demo
    """

    async def work() -> list[CommandInfo]:
        async with attached(id) as sandbox:
            return await sandbox.commands()

    import msgspec

    found: list[CommandInfo] = run(work())
    if as_json:
        print_json([msgspec.structs.asdict(info) for info in found])
        return
    rows = [
        [
            info.command_id,
            info.session or "-",
            info.state if info.outcome in (None, "ok") else str(info.outcome),
            "-" if info.exit_code is None else str(info.exit_code),
            str(info.output_bytes),
            info.text,
        ]
        for info in found
    ]
    print_table(["ID", "SESSION", "STATE", "CODE", "BYTES", "COMMAND"], rows)


async def _pass_on(
    command: Command, *, offset: int = 0, stdin: bool = False, show: bool, raw: bool = False
) -> Observation:
    """The output to this process's streams as it comes, if `show`; its end."""
    feeding = asyncio.ensure_future(_feed(command)) if stdin else None
    try:
        if show:
            streams = {"stdout": Output(sys.stdout.buffer, raw), "stderr": Output(sys.stderr.buffer, raw)}
            try:
                async for chunk in command.output(offset):
                    streams[chunk.stream].write(chunk.data)
            finally:
                for stream in streams.values():
                    stream.end()
        return await command.wait(output=not show)
    finally:
        if feeding:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


async def _feed(command: Command) -> None:
    """This process's standard input to the command's. A thread reads: standard input may be a file, which no event
    loop can wait for; it is a daemon, because a read from a terminal ends when somebody types."""
    loop = asyncio.get_running_loop()
    parts: asyncio.Queue[bytes] = asyncio.Queue(4)

    def read() -> None:
        data = b"."
        while data:
            data = os.read(0, INPUT_PART)
            try:
                asyncio.run_coroutine_threadsafe(parts.put(data), loop).result()
            except RuntimeError:  # the loop has ended, and with it the command
                return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while data := await parts.get():
        await command.send_input(data)
    await command.close_input()


def _end(seen: Observation | None, limit: float | None, as_json: bool) -> None:
    if seen is None:
        return
    if as_json:
        print_json(
            {
                "stdout": seen.stdout.decode("utf-8", "replace"),
                "stderr": seen.stderr.decode("utf-8", "replace"),
                "exit_code": seen.exit_code,
                "outcome": seen.outcome,
                "session_restarted": seen.session_restarted,
                "cause": seen.cause,
                "truncated_bytes": seen.truncated_bytes,
                "duration_s": round(seen.duration_s, 6),
                "events": seen.events,
            }
        )
    elif said := _remark(seen, limit):
        print(f"rockroll: {said}", file=sys.stderr)
    raise typer.Exit(seen.exit_code if seen.exit_code is not None else CODES.get(seen.outcome, 1))


def _remark(seen: Observation, limit: float | None) -> str:
    """What the streams and the exit code do not say."""
    said = []
    if seen.outcome == "timeout":
        said.append(f"killed after --timeout {limit:g} s" if limit else "killed at its timeout")
    elif seen.outcome == "oom":
        said.append("killed by the kernel: the sandbox's memory limit was reached")
    elif seen.outcome == "lost":
        said.append(f"the sandbox died while the command ran (cause: {seen.cause or 'unknown'})")
    elif seen.outcome == "closed" and seen.exit_code is None:
        said.append("the shell ended")
    if seen.session_restarted:
        said.append("the session's shell was started anew")
    if killed := seen.events.get("oom_kills", 0) if seen.outcome != "oom" else 0:
        said.append(f"{killed} of the sandbox's processes killed by the kernel at its memory limit")
    if refused := seen.events.get("pids_refused", 0):
        said.append(f"{refused} new processes or threads refused at its --pids limit")
    if seen.truncated_bytes:
        said.append(f"{seen.truncated_bytes} bytes of output over {MAX_OUTPUT} were dropped")
    return "; ".join(said)
