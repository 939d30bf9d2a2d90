"""The processes of one run, on this machine.

In: argument lists and log files. Out: children that die with this process, whose deaths are known at once and told
with the end of their log. Leaves what they do to the rooms whose `server` modules they run, and the same on other
machines to on_ray/places.py, whose `Places` has the surface of `Processes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rockroll import home, logs
from rockroll.append import write_whole
from rockroll.errors import PeerLost, ProcessDied
from rockroll.placement import usage
from rockroll.placement.needs import Needs
from rockroll.placement.usage import Usage

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


def death(name: str, code: int, log: Path, lines: int = 12, where: str = "") -> ProcessDied:
    """The sentence about a dead process: which, how it ended, the end of its log. where: on which machine."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return ProcessDied(f"the {name} process{where} {how}{log_end(log, lines)}", name=name, code=code)


def log_end(log: Path, lines: int = 12) -> str:
    """The end of a log, as the end of a sentence."""
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
    return f"; the end of {log}:\n{tail}" if tail else f"; its log {log} is empty"


class Process(Protocol):
    """A process of the run, wherever it is."""

    async def stop(self) -> None: ...


OnDeath = Callable[[ProcessDied], None]


class Place:
    """Where one process of a run is: its address, and how folders get from here to there and back. This one is here,
    where a folder is where it is."""

    where = "this machine"
    key: Path | None = None
    """The key of the link to it, for who calls; None: the link needs none."""
    their_key = ""
    """Where that key's file is for the process itself."""

    machine = "here"
    """Processes at places with the same one share their disks."""

    def __init__(self, processes: Processes, name: str, address: str) -> None:
        self._processes = processes
        self.name, self.address = name, address

    @property
    def here(self) -> bool:
        """Whether it shares this machine's disks."""
        return True

    async def reads(self, path: str, *, keep: bool = False) -> str:
        """A folder of this machine, for the process to read: where it finds it. keep: on its machine after the run, as
        a model that the next run will want."""
        return path

    def writes(self, path: str) -> str:
        """Where the process is to write what belongs at `path` on this machine."""
        return path

    def wrote(self, path: str) -> None:
        """It has written there: whoever `reads` that path next, has it from there."""

    async def bring(self, path: str, to: Path) -> None:
        """What it wrote at `writes(path)` becomes the folder `to` of this machine, which is not there yet; it goes
        there."""
        await asyncio.to_thread(shutil.move, path, to)

    def meeting(self) -> str:
        """A tcp address where processes of several machines find each other."""
        raise AssertionError("processes of one machine meet in a file")

    async def start(self, module: str, config: Any, *args: str, on_death: OnDeath | None = None) -> Process:
        """`python -m module --config FILE args`; FILE is `config`, a dataclass, as JSON beside the log."""
        return await self._processes.start(
            self.name, module, *self._processes.configured(self.name, config), *args, on_death=on_death
        )


class Processes:
    """All children of a run, and the folder of their sockets. Use as `async with Processes(log_dir)`."""

    explain_s = 2.0
    gpus = 0.0
    """How many there are to be shared out; here, nobody asks for any."""

    grows = False
    """Whether machines may come that are not there yet."""

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

    def meeting(self, name: str, places: Sequence[Place]) -> str:
        """Where processes at these places find each other, for torch's rendezvous."""
        if all(place.here for place in places):
            return f"file://{self.runtime / f'rendezvous-{name}'}"
        return places[0].meeting()

    async def reserve(self, needs: Mapping[str, Needs]) -> None:
        """Room for these processes, by name, all of it or none. This machine takes whatever comes."""

    def usage(self) -> list[Usage]:
        """What each process takes of its machine. Any thread may ask."""
        running = [child for child in self._children if child.process.returncode is None]
        return [Usage(child.name, home.node_name(), *usage.of(child.process.pid)) for child in running]

    def short_of(self, what: str, boxes: int, cpus: float, memory: int) -> None:
        """So many sandboxes of a kind are waited for, which no node has room for; here nothing is to be done. memory:
        bytes, of each."""

    async def place(self, name: str, needs: Needs, attempt: int = 0) -> Place:
        """Where a process is to run: what was reserved for it, or, where that is gone with its machine, another place.

        attempt: how often it was placed before.
        """
        # a socket of its own: the one of a killed process is still there
        return Place(self, name, self.address(f"{name}.{attempt}" if attempt else name))

    def configured(self, name: str, config: Any) -> tuple[str, str]:
        """The arguments that name a process's configuration, written as JSON beside its log."""
        file = self._log_dir / f"{name}.json"
        write_whole(file, json.dumps(dataclasses.asdict(config), indent=1).encode())
        return "--config", str(file)

    async def start(
        self,
        name: str,
        module: str,
        *args: str,
        env: dict[str, str] | None = None,
        on_death: OnDeath | None = None,
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

    async def _watch(self, child: Child, on_death: OnDeath) -> None:
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
                await asyncio.wait([self._failed], timeout=self.explain_s)
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
