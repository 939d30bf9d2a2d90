"""What `rockroll sandbox cp` and `watch` do and show.

In: the places of a copy, an attached sandbox. Out: the copy, how far it is (on a terminal), and what was left out.
Leaves the command line to cli/sandbox.py and the copying to the sandbox room.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rockroll.errors import UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox
    from rockroll.sandbox.tree import Copied

SHOWN_EVERY_S = 0.1
NAMED = 10
"""Things left out that are named one by one."""


class Places:
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


def show_copied(done: Copied, safe: Any) -> None:
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
