"""The processes of one run, on this machine.

In: argument lists and log files. Out: children that die with this process, whose deaths are known at once and told
with the end of their log. Leaves what they do to the rooms whose `server` modules they run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from rockroll import home, logs
from rockroll.errors import PeerLost, ProcessDied

T = TypeVar("T")
_GRACE_S = 5.0  # from SIGTERM to SIGKILL; the whole run must be gone 10 s after Ctrl-C


class Child:
    """One process of the run.

    started ──► running ──► ended by `stop`            nothing is said
                       └──► died by itself             `Processes.guard` raises ProcessDied
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self.process, self.log = name, process, log
        self.stopping = False

    async def died(self) -> ProcessDied | None:
        """Waits for the process's end; what to say of it, or None where it was asked to end."""
        code = await self.process.wait()
        return None if self.stopping else death(self.name, code, self.log)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL for what ignores it."""
        self.stopping = True
        if self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(_GRACE_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


def death(name: str, code: int, log: Path, lines: int = 12) -> ProcessDied:
    """The sentence about a dead process: which, how it ended, the end of its log."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
    shown = f"; the end of {log}:\n{tail}" if tail else f"; its log {log} is empty"
    return ProcessDied(f"the {name} process {how}{shown}", name=name, code=code)


class Processes:
    """All children of a run, and the folder of their sockets. Use as `async with Processes(log_dir)`."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._children: list[Child] = []
        self._watches: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        remove_left_behind()
        self.runtime = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=home.runtime_dir()))
        """A short folder for the run's sockets; removed at the end."""

    def address(self, name: str) -> str:
        """The ZeroMQ address of one of the run's servers."""
        return f"ipc://{self.runtime / name}"

    async def start(
        self,
        name: str,
        module: str,
        *args: str,
        env: dict[str, str] | None = None,
        on_death: Callable[[ProcessDied], None] | None = None,
    ) -> Child:
        """`python -m module args`, in a session of its own (a Ctrl-C at the terminal reaches only this process).

        on_death: told when it dies by itself, for a process that the run can do without; else `guard` raises.
        """
        log = self._log_dir / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *args,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        watch = asyncio.get_running_loop().create_task(self._watch(child, on_death or self.fail))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return child

    async def _watch(self, child: Child, on_death: Callable[[ProcessDied], None]) -> None:
        if (error := await child.died()) is not None:
            on_death(error)

    def bound_logs(self, most: int | None) -> None:
        """No child's log has more than `most` bytes now, and as many in the one before it (FILE.1); None: no bound."""
        if most is None:
            return
        for log in {child.log for child in self._children}:
            logs.bound(log, most)

    def fail(self, error: BaseException) -> None:
        """Ends `guard` with this error: some part that the run stands on is gone."""
        if not self._failed.done():
            self._failed.set_exception(error)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Does `work`, unless a process of the run dies first: then work is cancelled and ProcessDied raised."""
        doing = asyncio.ensure_future(work)
        try:
            await asyncio.wait([doing, self._failed], return_when=asyncio.FIRST_COMPLETED)
            if doing.done() and not doing.cancelled() and isinstance(doing.exception(), PeerLost):
                # a broken connection is heard of before the death behind it
                await asyncio.wait([self._failed], timeout=2)
            if self._failed.done() and (not doing.done() or doing.cancelled() or doing.exception() is not None):
                self._failed.result()
            return await doing
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)

    async def __aenter__(self) -> Processes:
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await asyncio.gather(*(child.stop() for child in self._children))
        await asyncio.gather(*self._watches, return_exceptions=True)
        if self._failed.done() and not self._failed.cancelled():
            self._failed.exception()
        shutil.rmtree(self.runtime, ignore_errors=True)


def remove_left_behind() -> None:
    """Socket folders of runs whose process was killed before it could remove them."""
    for folder in home.runtime_dir().glob("run-*-*"):
        pid = int(folder.name.split("-")[1])
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
