"""The node's side of the warden: tells it what to guard, and starts another should it die.

In: the node's folder and how a node is started. Out: exactly one warden for as long as the node serves. Leaves what a
warden does to warden.py, and when a node ends to node.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rockroll.placement import warden
from rockroll.sandbox.linux.process import Process, birth

AGAIN_S = 1.0
"""Before another warden, where one has just been started: never a loop of starts."""
_DEFAULT_SIGNALS = [signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
_log = logging.getLogger(__name__)


class Guard:
    """`start` once the node serves, `end` when it ends on purpose."""

    def __init__(self, folder: Path, log: Path, command: Sequence[str]) -> None:
        """command: the argv of a node, but for the descriptor that it tells when it is ready."""
        self._folder, self._log_path, self._command = folder, log, list(command)
        self._warden: Process | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._started = -AGAIN_S

    @property
    def pid(self) -> int:
        """The warden's, 0 between two."""
        return self._warden.pid if self._warden else 0

    def start(self) -> None:
        """From now on this process is guarded."""
        self._say(node=[os.getpid(), birth(os.getpid())])
        self._ensure()

    def end(self, wake: float | None) -> None:
        """This process ends because it means to; wake: when a node must be there again (Unix time), if ever."""
        if self._timer is not None:
            self._timer.cancel()
        if self._warden is not None:
            self._warden.forget()
        self._say(wake=wake)

    def _say(self, **what: Any) -> None:
        new = self._folder / "guard.json.new"
        new.write_text(json.dumps({**what, "command": self._command}))
        new.replace(self._folder / "guard.json")

    def _ensure(self) -> None:
        self._timer = None
        self._warden = self._found() or self._spawned()
        self._warden.ended.add_done_callback(self._on_end)

    def _found(self) -> Process | None:
        """The warden of an earlier node, told of this one."""
        try:
            pid, born = map(int, (self._folder / "warden.lock").read_text().split())
            process = Process(pid)
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return None
        if birth(pid) != born:
            process.forget()
            return None
        process.send(signal.SIGHUP)
        return process

    def _spawned(self) -> Process:
        self._started = asyncio.get_running_loop().time()
        argv = [sys.executable, "-I", "-S", str(Path(warden.__file__)), str(self._folder), str(self._log_path)]
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            pid = os.posix_spawn(
                sys.executable,
                argv,
                dict(os.environ),  # its nodes need it
                file_actions=[(os.POSIX_SPAWN_DUP2, null, target) for target in range(3)],
                setsid=True,
                setsigmask=[],
                setsigdef=_DEFAULT_SIGNALS,
            )
        finally:
            os.close(null)
        return Process(pid)

    def _on_end(self, status: asyncio.Future[int | None]) -> None:
        self._warden = None
        if status.result() != warden.HELD:
            _log.warning("the warden ended with %s; another one is started", status.result())
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, self._started + AGAIN_S - loop.time()), self._ensure)
