"""A box held still: no process of it runs while its files are copied, and none of them can tell.

In: the pid of the box's init. Out: a context in which every process of the box is frozen by its cgroup (v1 and v2).
Leaves what is done meanwhile to the caller.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rockroll.errors import HostError, SandboxError, SandboxLost
from rockroll.sandbox.container import profile

WITHIN_S = 5.0
"""A process that waits for a dead disk or network file system cannot be frozen."""
PAUSE_S = 0.001
"""v1 has no event for "all are frozen now": reading the file is what completes it."""
_WORDS = {"freezer.state": ("FROZEN", "THAWED"), "cgroup.freeze": ("1", "0")}


class Hold:
    """One box's standing still: for how long it did, and its end."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since = 0.0
        self._over = asyncio.Event()
        self._over.set()

    @asynccontextmanager
    async def frozen(self, init: int) -> AsyncIterator[None]:
        """As `frozen`, counted."""
        self._since = time.monotonic()
        self._over.clear()
        try:
            async with frozen(init):
                yield
        finally:
            self._before += time.monotonic() - self._since
            self._over.set()

    def seconds(self) -> float:
        """All of it until now."""
        return self._before + (0.0 if self._over.is_set() else time.monotonic() - self._since)

    async def over(self) -> None:
        """Returns once the box is not frozen."""
        await self._over.wait()


@asynccontextmanager
async def frozen(init: int) -> AsyncIterator[None]:
    """Raises HostError where this host gives no freezer, SandboxError where a process does not stop within WITHIN_S.

    A process that is started in the box meanwhile freezes as it joins.
    """
    switch = _switch(init)
    if switch is None:
        raise HostError(
            "this host has no freezer for a running sandbox; stop it first (`rockroll sandbox stop ID`): "
            "the files of a stopped one can be copied"
        )
    try:
        await _freeze(switch)
        yield
    finally:
        _thaw(switch)


def thaw(init: int) -> None:
    """Lets a box go on that somebody left frozen; nothing where it is not, cannot be, or is gone."""
    try:
        switch = _switch(init)
    except SandboxLost:
        return
    if switch is not None:
        _thaw(switch)


async def _freeze(switch: Path) -> None:
    try:
        switch.write_text(_WORDS[switch.name][0])
        async with asyncio.timeout(WITHIN_S):
            while not _is_frozen(switch):
                await asyncio.sleep(PAUSE_S)
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise SandboxError(
                f"a process of the sandbox did not stop within {WITHIN_S:g} s, so its files cannot be copied: "
                "it waits for a disk; try again, or stop the sandbox first"
            ) from None
        raise SandboxLost("the sandbox died before its files could be copied") from None


def _thaw(switch: Path) -> None:
    try:
        switch.write_text(_WORDS[switch.name][1])
    except OSError:
        return  # the box has died, and its cgroup with it


def _switch(init: int) -> Path | None:
    groups, ours = profile.cgroups(init), profile.cgroups(os.getpid())
    for name, file in (("freezer", "freezer.state"), ("unified", "cgroup.freeze")):
        # A box without a group of its own (an ordinary user's, on v1) shares this process's: it would freeze itself.
        if name in groups and groups[name] != ours.get(name) and os.access(groups[name] / file, os.W_OK):
            return groups[name] / file
    return None


def _is_frozen(switch: Path) -> bool:
    if switch.name == "freezer.state":
        return switch.read_text().strip() == "FROZEN"
    return "frozen 1" in (switch.parent / "cgroup.events").read_text()
