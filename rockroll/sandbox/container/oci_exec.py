"""Processes inside a container, without Podman and conmon.

In: a container's bundle and init, an argv, three file descriptors. Out: a Process whose true exit status comes from a
wait in this process. Same user, capabilities, seccomp, no-new-privileges and rlimits as the container's own first
process: they are read from its bundle. Leaves what runs to session.py and box.py.

Two ways, one result: enter.py (spawner.py), some ms, where this host allows it; else the OCI runtime itself,
`runc|crun exec --detach`, 25-30 ms. Either leaves the new process an orphan: this process must be a child subreaper
(process.become_subreaper) to be able to wait for it.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import os
import signal
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rockroll.errors import SandboxError, SandboxLost
from rockroll.sandbox.container.cgroup import MARK, Scope
from rockroll.sandbox.container.spawner import STARTS_AT_ONCE, EnterFailed, Inside, Spawner
from rockroll.sandbox.fs import files
from rockroll.sandbox.linux import reaper
from rockroll.sandbox.linux.process import Process

_DEFAULT_SIGNALS = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM]
_ids = itertools.count(1)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """The OCI runtime: its binary, its --root directory, and the environment for it."""

    binary: str
    state_root: str
    environment: Mapping[str, str]
    name: str = "runc"
    store: str = ""
    """Podman's folder, and that of what runs; "" where they are not known."""
    run_store: str = ""

    def starts_in_cgroup(self, v2: bool) -> bool:
        """Whether `exec --cgroup` puts a process into a group of its own before its first instruction."""
        return v2 or self.name == "runc"


class OciExec:
    """Starts processes in one running container."""

    def __init__(self, runtime: Runtime, container: str, bundle: Path, scratch: Path) -> None:
        """container: full id. bundle: the folder of its config.json. scratch: for short-lived files."""
        self._runtime, self._container, self._scratch = runtime, container, scratch
        try:
            config = msgspec.json.decode((bundle / "config.json").read_bytes())
        except FileNotFoundError:
            raise SandboxLost(f"container {container[:12]} has no bundle: it is not running") from None
        self._process: dict[str, Any] = {**config["process"], "terminal": False}
        self._process.pop("consoleSize", None)
        self._seccomp = msgspec.json.encode((config.get("linux") or {}).get("seccomp"))
        self.environment = dict(item.split("=", 1) for item in self._process.get("env", []))
        self.uid = int(self._process["user"]["uid"])
        self.gid = int(self._process["user"].get("gid", 0))
        self.cwd: str = self._process.get("cwd") or "/"
        self._init = 0
        self._spawner: Spawner | None = None
        self._inside: Inside | None = None
        self._starting: set[asyncio.Future[Process]] = set()
        self.starts = asyncio.Semaphore(STARTS_AT_ONCE)
        """Held around `spawn`, by shells from before their pipes are opened: two thousand that wait their turn with
        pipes in hand are more than a process may have. The whole node's, after `look`."""

    async def look(self, spawner: Spawner, init: int) -> None:
        """Finds out whether processes can be started without the runtime."""
        self._init = init
        self._spawner, self.starts = spawner, spawner.starts
        self._inside = await Inside.look(spawner, init, self._process, self._seccomp)

    def null(self, flags: int = os.O_RDWR) -> int:
        """The box's /dev/null, for a program that has no other input or output. After `look`."""
        return files.null(self._init, flags)

    async def spawn(
        self,
        argv: Sequence[str],
        scope: Scope,
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Process:
        """Starts argv in the scope; returns when it runs. Cancelled, it ends what it may have started.

        The caller holds one of `starts`. env: over the container's own. Raises NotStarted where the program or the
        folder is missing, SandboxLost where the container is gone.
        """
        full = {**self.environment, **(env or {}), **({MARK: scope.mark} if scope.mark else {})}
        work = self._spawn(list(argv), scope, (stdin, stdout, stderr), full, cwd or self.cwd)
        return await self._started(work)

    async def settled(self) -> None:
        """Returns when every start under way has come to its process, or to none."""
        while self._starting:
            await asyncio.wait(self._starting)

    async def _started(self, work: Coroutine[Any, Any, Process]) -> Process:
        """Cancelled, it ends what `work` has started."""
        starting = asyncio.ensure_future(work)
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A start cannot be stopped half way without leaving a process that belongs to nobody.
            await asyncio.wait([starting])
            if starting.exception() is None:
                process = starting.result()
                process.send(signal.SIGKILL)
                await process.ended
            raise

    async def _spawn(
        self, argv: list[str], scope: Scope, fds: tuple[int, int, int], env: dict[str, str], cwd: str
    ) -> Process:
        with reaper.starting():
            process = await self._enter(argv, scope, fds, env, cwd)
            if process is None:
                process = await self._run_runtime(argv, scope.arguments, fds, env, cwd)
        await asyncio.to_thread(scope.adopt, process.pid)
        return process

    async def _enter(
        self, argv: list[str], scope: Scope, fds: tuple[int, int, int], env: dict[str, str], cwd: str
    ) -> Process | None:
        """None where it cannot be done this way and nothing was started."""
        if self._inside is None or self._spawner is None:
            return None
        try:
            pid = await self._inside.spawn(self._spawner, argv, env, cwd, fds, scope.group)
            return Process(pid, orphan=True)
        except EnterFailed as error:
            if error.step == "folder":
                raise NotStarted(_no_folder(cwd), code=126) from None
            if error.step == "exec" and error.code == errno.ENOENT:
                raise NotStarted(f"{argv[0]}: not found in the sandbox; the image must have it", code=127) from None
            if error.step == "exec":
                raise NotStarted(f"{argv[0]}: the sandbox cannot run it: {os.strerror(error.code)}", code=126) from None
            _log.warning("a process could not be started directly (%s); the runtime is asked instead", error)
            return None

    async def spawn_on_terminal(
        self,
        argv: Sequence[str],
        console: str,
        size: tuple[int, int],
        *,
        env: Mapping[str, str],
        cwd: str | None = None,
    ) -> Process:
        """Starts argv as the leader of a terminal of its own (a pty of the box's), in no scope.

        console: a unix socket; the runtime sends the terminal's other end there. size: rows, columns. Errors as of
        `spawn`.
        """
        return await self._started(self._spawn_on_terminal(list(argv), console, size, env, cwd or self.cwd))

    async def _spawn_on_terminal(
        self, argv: list[str], console: str, size: tuple[int, int], env: Mapping[str, str], cwd: str
    ) -> Process:
        full = {**self.environment, **env}
        null = self.null()
        try:
            with reaper.starting():
                return await self._run_runtime(
                    argv,
                    ["--console-socket", console],
                    (null, null, null),
                    full,
                    cwd,
                    terminal=True,
                    consoleSize={"height": size[0], "width": size[1]},
                )
        finally:
            os.close(null)

    async def _run_runtime(
        self, argv: list[str], options: list[str], fds: tuple[int, int, int], env: dict[str, str], cwd: str, **more: Any
    ) -> Process:
        given = {"args": argv, "cwd": cwd, "env": [f"{key}={value}" for key, value in env.items()]}
        spec = {**self._process, **given, **more}
        stem = self._scratch / f"exec-{next(_ids)}"
        spec_file, pid_file, log_file = (stem.with_suffix(suffix) for suffix in (".json", ".pid", ".log"))
        try:
            try:
                spec_file.write_text(json.dumps(spec))
            except FileNotFoundError:
                raise SandboxLost("the sandbox has just been deleted") from None
            code = await self._run(
                [
                    *(self._runtime.binary, "--root", self._runtime.state_root),
                    *("--log", str(log_file), "--log-format", "json"),
                    *("exec", "--detach", "--process", str(spec_file), "--pid-file", str(pid_file)),
                    *(*options, self._container),
                ],
                fds,
            )
            if code != 0:
                raise self._explain(_read(log_file) or f"exit code {code}", argv[0], cwd)
            try:
                return Process(int(pid_file.read_text()))
            except (OSError, ValueError) as error:
                raise SandboxLost(f"{argv[0]} was started in the sandbox and is gone: {error}") from None
        finally:
            for path in (spec_file, pid_file, log_file):
                path.unlink(missing_ok=True)

    async def _run(self, argv: list[str], fds: tuple[int, int, int]) -> int:
        """The runtime's own exit code. posix_spawn: no fork of a large process, no thread to wait for it."""
        pid = os.posix_spawn(  # noqa: ASYNC221 - returns at once
            argv[0],
            argv,
            dict(self._runtime.environment),
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(fds)],
            setsid=True,  # Ctrl-C in the node's terminal is the node's alone
            setsigmask=[],
            setsigdef=_DEFAULT_SIGNALS,  # Python ignores SIGPIPE; what runs in the box must not inherit that
        )
        status = await Process(pid).ended
        return 255 if status is None else status

    def _explain(self, said: str, program: str, cwd: str) -> Exception:
        low = said.lower()
        if "chdir" in low or "cwd" in low or "working directory" in low:
            return NotStarted(_no_folder(cwd), code=126)
        if "executable file not found" in low or "no such file or directory" in low:
            return NotStarted(f"{program}: not found in the sandbox; the image must have it", code=127)
        if "permission denied" in low or "exec format error" in low:
            return NotStarted(f"{program}: the sandbox cannot run it: {said}", code=126)
        if "does not exist" in low or "not running" in low or "stopped" in low or "no such process" in low:
            return SandboxLost(f"the sandbox is not running: {said}")
        return SandboxError(f"{program} could not be started in the sandbox: {said}")


class NotStarted(SandboxError):
    """The program or its folder is missing or cannot be run. fields: code, what a shell would have returned."""


def _no_folder(cwd: str) -> str:
    return f"{cwd} is not a folder in the sandbox; make it first or leave cwd out"


def _read(path: Path) -> str:
    """The last error of the runtime's log (text, or one JSON object a line)."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    if not lines:
        return ""
    try:
        return str(json.loads(lines[-1])["msg"])
    except (ValueError, KeyError, TypeError):
        return lines[-1]
