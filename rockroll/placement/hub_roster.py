"""Which nodes a hub has, on disk: what a hub that is started anew knows of the one before.

In: nodes that join, leave and are drained. Out: those of the hub before that have not come back yet, for so long as
they are waited for; which are drained. Leaves what they hold to the nodes, which tell it when they join.

    started, not long after the hub before ──► waits for its nodes ──► all are back, or SETTLE_S are over ──► settled
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

import msgspec

from rockroll.append import write_whole
from rockroll.errors import HostError
from rockroll.sandbox.cluster.presence import FORGET_S

SETTLE_S = 30.0
"""Nodes dial again within a second or two; on a machine with forty things to do at once it takes longer."""
FRESH_S = 30.0
"""So often the file is given the time: how long the hub was away is known by it."""
_log = logging.getLogger(__name__)


class _File(msgspec.Struct, frozen=True):
    nodes: dict[str, str]
    """Name → trunk, as hex."""
    drained: list[str]


class Roster:
    """path: of its file. Belongs to the event loop that it is made on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        before = self._read()
        self._nodes: dict[str, bytes] = {}
        self.drained = set(before.drained)
        """Names of nodes on which nothing is placed. Nodes keep their names, so it outlives them."""
        self.missing = {name: bytes.fromhex(trunk) for name, trunk in before.nodes.items()}
        """Nodes of the hub before this one that have not joined: name → trunk."""
        self._deadline = self._loop.time() + SETTLE_S
        self._touch_at = self._loop.time()

    def _read(self) -> _File:
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=_File)
            away = time.time() - self._path.stat().st_mtime
        except FileNotFoundError:
            return _File({}, [])
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            _log.warning("which nodes the hub before this one had is not known: %s", error)
            return _File({}, [])
        return found if away < FORGET_S else _File({}, found.drained)

    @property
    def settled(self) -> bool:
        """Nobody of the hub before is waited for any more."""
        return not self.missing or self._loop.time() >= self._deadline

    @property
    def left_s(self) -> float:
        """Seconds that are waited still."""
        return max(0.0, self._deadline - self._loop.time()) if self.missing else 0.0

    def joined(self, name: str, trunk: bytes) -> None:
        self.missing.pop(name, None)
        self._nodes[name] = trunk
        self._write()

    def left(self, name: str) -> None:
        if self._nodes.pop(name, None) is not None:
            self._write()

    def drain(self, name: str, on: bool) -> None:
        (self.drained.add if on else self.drained.discard)(name)
        self._write()

    def look(self) -> None:
        """Now and then, so that the file says when this hub was last there."""
        if self._loop.time() - self._touch_at > FRESH_S and self._path.exists():
            self._touch_at = self._loop.time()
            os.utime(self._path)

    def _write(self) -> None:
        waited = {} if self.settled else self.missing
        nodes = {name: trunk.hex() for name, trunk in {**waited, **self._nodes}.items()}
        try:
            write_whole(self._path, msgspec.json.encode(_File(nodes, sorted(self.drained))))
        except HostError as error:
            _log.warning("the next hub will not know these nodes: %s", error)
