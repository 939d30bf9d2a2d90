"""`rockroll sandbox cp | watch`: files into a sandbox, out of it, and as they change in it.

In: the command line. Out: the copy, how far it is (on a terminal), and what was left out; a line for each change.
Leaves the copying and the watching to the sandbox room.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rockroll.cli.arguments import Id, Json
from rockroll.cli.loop import run
from rockroll.cli.node import attached
from rockroll.cli.show import print_json
from rockroll.cli.text import safe
from rockroll.errors import UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox
    from rockroll.sandbox.fs.tree import Copied

SHOWN_EVERY_S = 0.1
NAMED = 10
"""Things left out that are named one by one."""


def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A path here, or ID:PATH in a sandbox.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A path here, or ID:PATH in a sandbox.")],
    all_links: Annotated[
        bool, typer.Option("--all-links", help="Out of a sandbox: symbolic links that lead out of the tree, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy a file or a folder into a sandbox, or out of it.

    DST is the path that the copy will have; with a slash at its end, the folder it goes into. Modes, times, links,
    empty folders and holes are kept; owners are not. What cannot be copied (sockets, FIFOs, devices) is left out and
    named on standard error.

    Examples:

      rockroll sandbox cp data.csv demo:/data/

      rockroll sandbox cp src demo:/srv/src

      rockroll sandbox cp demo:/srv/out results
    """
    places = _Places(source, target)

    async def work() -> Any:
        async with attached(places.box) as sandbox:
            return await places.copy(sandbox, links="all" if all_links else "inside")

    done = run(work())
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(done))
    else:
        _show_copied(done)


def watch(
    id: Id,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder or a file in the sandbox.")],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="All folders below it, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """Print what changes in a folder of a sandbox, as it changes, until Ctrl-C or the sandbox's end.

    Examples:

      rockroll sandbox watch demo /srv -r

      rockroll sandbox watch demo /srv/out --json | jq -r 'select(.kind == "created").path'
    """

    async def work() -> None:
        import json

        import msgspec

        async with attached(id) as sandbox:
            async for event in sandbox.watch(path, recursive=recursive):
                if as_json:
                    print(json.dumps(msgspec.to_builtins(event)), flush=True)
                else:
                    before = f" (was {safe(event.moved_from)})" if event.moved_from is not None else ""
                    print(f"{event.kind:8}  {safe(event.path)}{before}", flush=True)

    run(work())


class _Places:
    """SRC and DST of `cp`, one of them in a sandbox. UsageError for anything else."""

    def __init__(self, source: str, target: str) -> None:
        box_from, self.source = _place(source)
        box_to, self.target = _place(target)
        if (box_from is None) == (box_to is None):
            raise UsageError(
                f"cp: one of SRC and DST is ID:PATH, the other a path here; got {source} and {target} "
                "(a path here with a colon in it is written ./a:b)"
            )
        self.up = box_from is None
        self.box = box_from or box_to or ""

    async def copy(self, sandbox: Sandbox, *, links: Literal["inside", "all"]) -> Copied:
        """Into DST where that ends with a slash or is a folder and SRC a file; else to DST itself."""
        name = Path(self.source).resolve().name if self.up else self.source.rstrip("/").rpartition("/")[2]
        target = self.target + name if self.target.endswith("/") else self.target
        progress = _Progress() if sys.stderr.isatty() else None
        try:
            if self.up:
                return await sandbox.upload(self.source, target, progress=progress)
            return await sandbox.download(self.source, target, links=links, progress=progress)
        finally:
            if progress:
                progress.wipe()


def _show_copied(done: Copied) -> None:
    """What was left out, on stderr: a copy that is not whole says so."""
    for left in done.left_out[:NAMED]:
        print(f"rockroll: left out: {safe(left.path)}: {safe(left.why)}", file=sys.stderr)
    if done.left_out_count > NAMED:
        print(f"rockroll: left out: {done.left_out_count - NAMED} more; --json names them", file=sys.stderr)
    for changed in done.changed[:NAMED]:
        print(f"rockroll: {safe(changed.path) or 'the file'}: {safe(changed.why)}; copy it again", file=sys.stderr)


class _Progress:
    """One line that is written over and over, on a terminal."""

    def __init__(self) -> None:
        self._begun = self._shown = time.monotonic()

    def __call__(self, files: int, sent: int) -> None:
        now = time.monotonic()
        if now - self._shown < SHOWN_EVERY_S:
            return
        self._shown = now
        mb = sent / 1e6
        print(f"\r{files} files, {mb:,.1f} MB, {mb / (now - self._begun):,.0f} MB/s\x1b[K", end="", file=sys.stderr)
        sys.stderr.flush()

    def wipe(self) -> None:
        if self._shown > self._begun:
            print("\r\x1b[K", end="", file=sys.stderr)


def _place(text: str) -> tuple[str | None, str]:
    """("ID", "PATH") for ID:PATH, (None, path) for a path on this side."""
    box, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".", "~")) or "/" in box:
        return None, text
    if not box or not path:
        raise UsageError(f"cp: a place in a sandbox is ID:PATH, as in demo:/data; got {text!r}")
    return box, path
