"""What a node of a Ray cluster does for sandboxes: it runs the hub, or brings its home's sandbox node to it.

In: the cluster file's bytes. Out: a hub process that is started again whenever it ends; this home's node as its member,
a daemon that outlives Ray's. Leaves on which node which of it is called to keeper.py, the hub and membership to
placement/hub.py and member.py.
"""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from rockroll import home
from rockroll.errors import HostError

T = TypeVar("T")
READY_S = 30.0
AGAIN_S = 1.0
"""Before a hub that ended is started again."""


def folder() -> Path:
    return home.made(home.home() / "cluster")


class HubProcess:
    """The hub of a cluster, on this machine, for as long as this object is not told to `stop`."""

    def __init__(self, ip: str) -> None:
        self.file = folder() / "hub.json"
        self._address = f"tcp://{ip}:0"  # a hub that is started again takes the port of its file
        self._over = threading.Event()
        self._process = self._started()
        threading.Thread(target=self._keep, daemon=True).start()

    def _started(self) -> subprocess.Popen[bytes]:
        """Returns when it serves. HostError, with the end of its log, where it does not."""
        ready, told = os.pipe()
        log = folder() / "hub.log"
        argv = [sys.executable, "-m", "rockroll.placement.hub", "--address", self._address, "--file", str(self.file)]
        try:
            with log.open("ab") as out:
                process = subprocess.Popen(
                    [*argv, "--ready-fd", str(told)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    pass_fds=[told],
                    start_new_session=True,
                )
        finally:
            os.close(told)
        try:
            readable, _, _ = select.select([ready], [], [], READY_S)
            if readable and os.read(ready, 16):
                return process
        finally:
            os.close(ready)
        process.kill()
        process.wait()
        end = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise HostError(f"the hub of the cluster does not start; the end of {log}:\n{end}")

    def _keep(self) -> None:
        while True:
            self._process.wait()
            if self._over.wait(AGAIN_S):
                return
            try:
                self._process = self._started()
            except (HostError, OSError):
                continue

    def stop(self) -> None:
        self._over.set()
        self._process.terminate()
        self._process.wait()


def join(cluster: bytes, name: str) -> str:
    """Brings this home's sandbox node to the hub, starting it where none runs; the name it has there. Blocks.

    Raises HostError where sandboxes cannot run here.
    """
    from rockroll.placement import member

    file = write(cluster, folder() / "member-of.json")
    return _run(lambda: member.join(file, name)).name


def leave() -> None:
    """This home's node is no member any more, and ends once it is idle."""
    from rockroll.placement import member

    _run(member.leave)


def write(cluster: bytes, path: Path) -> Path:
    """The cluster file, for this user alone."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(cluster)
    draft.replace(path)
    return path


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """On a loop of asyncio's own: the policy that Ray sets in its workers, uvloop's, starts no child for another."""
    asyncio.set_event_loop_policy(None)
    from rockroll.sandbox.node_client import close_node

    async def whole() -> T:
        try:
            return await work()
        finally:
            await close_node()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(whole())
