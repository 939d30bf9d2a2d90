"""Processes inside a container, started by its OCI runtime directly: `runc|crun exec --detach`, no Podman, no conmon.

In: a container's bundle and pid, an argv, three file descriptors. Out: a Process whose true exit status comes from a
wait in this process. Same user, capabilities, seccomp, no-new-privileges and rlimits as the container's own first
process: they are read from its bundle. Leaves what runs to session.py and box.py.

The runtime leaves the new process an orphan; this process must be a child subreaper to become its parent
(`become_subreaper`), else nobody here can wait for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rockroll.errors import HostError, SandboxError, SandboxLost
from rockroll.sandbox import reaper

PR_SET_CHILD_SUBREAPER = 36
_DEFAULT_SIGNALS = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM]
_ids = itertools.count(1)


def become_subreaper() -> None:
    """Makes orphans of this process's descendants its children. Raises HostError where the kernel refuses."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise HostError(f"this process cannot become a child subreaper: {os.strerror(ctypes.get_errno())}")


class Process:
    """A child of this process, known by pid and pidfd. `ended` becomes its wait status: >= 0 code, < 0 -signal.

    None where it was not our child and only its end is known.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int | None] = self._loop.create_future()
        self._fd = os.pidfd_open(pid)
        self._loop.add_reader(self._fd, self._reap)

    def send(self, number: int) -> None:
        """A signal; nothing when it has ended."""
        if self._fd >= 0:
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                return

    def _reap(self) -> None:
        status: int | None = None
        try:
            found = os.waitid(os.P_PIDFD, self._fd, os.WEXITED)
            if found is not None:
                status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        except ChildProcessError:
            status = None
        self.forget()
        if not self.ended.done():
            self.ended.set_result(status)

    def forget(self) -> None:
        """Stops watching."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True)
class Runtime:
    """The OCI runtime: its binary, its --root directory, and the environment for it."""

    binary: str
    state_root: str
    environment: Mapping[str, str]
    name: str = "runc"

    def starts_in_cgroup(self, v2: bool) -> bool:
        """Whether `exec --cgroup` puts a process into a group of its own before its first instruction."""
        return v2 or self.name == "runc"


class OciExec:
    """Starts processes in one running container."""

    def __init__(self, runtime: Runtime, container: str, bundle: Path, scratch: Path) -> None:
        """container: full id. bundle: the folder of its config.json. scratch: for short-lived files."""
        self._runtime, self._container, self._scratch = runtime, container, scratch
        try:
            config = json.loads((bundle / "config.json").read_bytes())
        except FileNotFoundError:
            raise SandboxLost(f"container {container[:12]} has no bundle: it is not running") from None
        self._process: dict[str, Any] = {**config["process"], "terminal": False}
        self._process.pop("consoleSize", None)
        self.environment = dict(item.split("=", 1) for item in self._process.get("env", []))
        self.uid = int(self._process["user"]["uid"])
        self.gid = int(self._process["user"].get("gid", 0))
        self.cwd: str = self._process.get("cwd") or "/"

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        arguments: Sequence[str] = (),
    ) -> Process:
        """Starts argv; returns when it runs (25-30 ms). Cancelled, it ends what it may have started.

        env: over the container's own. arguments: more of the runtime's own options. Raises NotStarted where the
        program or the folder is missing, SandboxLost where the container is gone.
        """
        starting = asyncio.ensure_future(self._spawn(argv, (stdin, stdout, stderr), env, cwd, arguments))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The runtime cannot be stopped half way without leaving a process that belongs to nobody.
            await asyncio.wait([starting])
            if starting.exception() is None:
                process = starting.result()
                process.send(signal.SIGKILL)
                await process.ended
            raise

    async def _spawn(
        self,
        argv: Sequence[str],
        fds: tuple[int, int, int],
        env: Mapping[str, str] | None,
        cwd: str | None,
        arguments: Sequence[str],
    ) -> Process:
        spec = {**self._process, "args": list(argv), "cwd": cwd or self.cwd}
        spec["env"] = [f"{key}={value}" for key, value in {**self.environment, **(env or {})}.items()]
        stem = self._scratch / f"exec-{next(_ids)}"
        spec_file, pid_file, log_file = (stem.with_suffix(suffix) for suffix in (".json", ".pid", ".log"))
        try:
            spec_file.write_text(json.dumps(spec))
            with reaper.starting():
                code = await self._run(
                    [
                        *(self._runtime.binary, "--root", self._runtime.state_root, "--log", str(log_file)),
                        *("exec", "--detach", "--process", str(spec_file), "--pid-file", str(pid_file)),
                        *(*arguments, self._container),
                    ],
                    fds,
                )
                if code != 0:
                    raise self._explain(_read(log_file) or f"exit code {code}", argv[0], spec["cwd"])
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
            return NotStarted(f"{cwd} is not a folder in the sandbox; make it first or leave cwd out", code=126)
        if "executable file not found" in low or "no such file or directory" in low:
            return NotStarted(f"{program}: not found in the sandbox; the image must have it", code=127)
        if "permission denied" in low or "exec format error" in low:
            return NotStarted(f"{program}: the sandbox cannot run it: {said}", code=126)
        if "does not exist" in low or "not running" in low or "stopped" in low or "no such process" in low:
            return SandboxLost(f"the sandbox is not running: {said}")
        return SandboxError(f"{program} could not be started in the sandbox: {said}")


class NotStarted(SandboxError):
    """The program or its folder is missing or cannot be run. fields: code, what a shell would have returned."""


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
