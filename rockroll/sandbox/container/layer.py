"""What a box has written: its writable layer, copied as it is.

In: overlay's upper folders. Out: a copy with the same modes, owners, times, links, hard links, holes, extended
attributes and overlay marks (whiteouts, opaque folders). Leaves holding the box still to freezer.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from rockroll.errors import HostError, SandboxError
from rockroll.sandbox.linux import reaper

_EXACT = ("-dR", "--preserve=mode,ownership,timestamps,links,xattr", "--sparse=auto", "--reflink=auto")
"""Not -a: that keeps silent where an extended attribute, and with it an overlay mark, cannot be written."""


class NoSpace(HostError):
    """The copy does not fit where it should go."""


async def copy(source: Path, target: Path) -> None:
    """Everything in source, and the folder's own mode and owner, into the folder target. Nothing may write to either.

    Raises NoSpace, SandboxError with what cp said; then target is half full.
    """
    code, said = await _run("cp", *_EXACT, "--", f"{source}/.", f"{target}/")
    if code and any("No space left" in line for line in said):
        raise NoSpace(f"{target} has no space left for a copy of {source}; free some and try again")
    if code:
        raise SandboxError(f"the files of a sandbox could not be copied: {said[0]}")


async def remove(copy: Path) -> None:
    """Removes a copy, folders of any depth in it (shutil.rmtree ends at a thousand). Raises SandboxError."""
    code, said = await _run("rm", "-rf", "--one-file-system", "--", str(copy))
    if code:
        raise SandboxError(f"a copy of a sandbox's files could not be removed: {said[0]}")


async def _run(*argv: str) -> tuple[int, list[str]]:
    """The exit code and the lines on stderr, of which there is at least one."""
    with reaper.starting():
        process = await asyncio.create_subprocess_exec(
            # It ends with the node: what a killed one was copying is removed by the next, which must have it alone.
            *("setpriv", "--pdeathsig", "KILL", *argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            _, said = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):  # it ended in this very moment
                process.kill()
            await process.wait()
            raise
    lines = said.decode(errors="replace").strip().splitlines()
    return process.returncode or 0, lines or [f"{argv[0]} ended with {process.returncode}"]
