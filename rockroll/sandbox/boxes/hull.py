"""One box as this host has it: its container, its init, its cgroup, and what is read of them.

In: a container that Podman has made. Out: the ground on which sessions and executes run (their `Home`) while init
lives. Leaves when it is started and ended to life.py, what it writes to writable.py, Podman's API to podman.py.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec

from rockroll.errors import HostError, SandboxLost, SandboxNotFound
from rockroll.sandbox.boxes import names, recycle
from rockroll.sandbox.boxes.init import Init
from rockroll.sandbox.boxes.status import Status
from rockroll.sandbox.boxes.writable import Writable
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container import cgroup, disk, freezer, profile, started
from rockroll.sandbox.container.cgroup import BoxCgroup, Scope
from rockroll.sandbox.container.oci_exec import OciExec, Runtime
from rockroll.sandbox.container.podman import Podman, leave_exit
from rockroll.sandbox.container.share import Share
from rockroll.sandbox.container.spawner import EnterFailed, Spawner, limit_counters
from rockroll.sandbox.exec.environment import Environment
from rockroll.sandbox.exec.place import Place
from rockroll.sandbox.exec.shell import Shell
from rockroll.sandbox.exec.spool import Spool
from rockroll.sandbox.exec.stream import Sink
from rockroll.sandbox.fs import files
from rockroll.sandbox.linux import scheduling
from rockroll.sandbox.wire import Outcome, Stats

_AGAIN = 3
"""So often a box that missed its disk is started again; then it is said that the limit is not enforced."""
_log = logging.getLogger(__name__)


class Hull:
    """`start` or `find` its init, then `look`: from then on it is a session's and an execute's Home."""

    def __init__(
        self,
        status: Status,
        config: SandboxConfig,
        podman: Podman,
        runtime: Runtime,
        spawner: Spawner,
        on_end: Callable[[asyncio.Future[int | None]], None],
    ) -> None:
        """on_end: called when init has ended, with its wait status."""
        id = status.id
        self._id, self._status, self._config = id, status, config
        self._podman, self._runtime, self._spawner = podman, runtime, spawner
        self.container = ""
        """Podman's id of it; "" until there is one."""
        self.folder = names.folder_of(id)
        names.make_folder(id)
        self.log_file = Spool(names.spool_path(id))
        self.log = self.log_file.write
        self.init = Init(on_end)
        self.writable = Writable(id, config, podman)
        self.share = Share(self.folder, config)
        self.hold = freezer.Hold()
        self.held_s, self.thawed = self.hold.seconds, self.hold.over
        self.environment = Environment(names.environment_path(id))
        self.unenforced: list[str] = []
        self.cgroup: BoxCgroup | None = None
        self.memory: dict[str, int] = {}
        """The file systems in memory, by their mount points."""
        self.baseline: recycle.Baseline | None = None
        self.not_recyclable = "it was started by an earlier node"
        self.shells = 0
        self._execer: OciExec | None = None
        self._oom_kills = 0

    # -- what sessions and executes ask

    @property
    def execer(self) -> OciExec:
        if self._execer is None:
            raise self._status.not_running()
        return self._execer

    @property
    def running_cgroup(self) -> BoxCgroup:
        """Raises SandboxLost, SandboxError where the box has never run here."""
        if self.cgroup is None:
            raise self._status.not_running()
        return self.cgroup

    @property
    def uid(self) -> int:
        return files.host_id(self.init.pid, "uid", self.execer.uid)

    @property
    def owner_ids(self) -> tuple[int, int]:
        """(uid, gid) on this host of the box's user."""
        return self.uid, files.host_id(self.init.pid, "gid", self.execer.gid)

    def doomed(self) -> Outcome | None:
        if self._status.leaving:
            return self._status.leaving
        if self._status.state not in ("starting", "running", "paused") or self.init.dying():
            return "lost"
        return None

    def oom_killed(self) -> bool:
        before = self._oom_kills
        self._oom_kills = self.cgroup.oom_kills() if self.cgroup else 0
        return self._oom_kills > before

    async def new_shell(self, scope: Scope, env: Mapping[str, str], cwd: str | None, state: bytes, keep: Sink) -> Shell:
        shell = Shell(self.new_place(), self.uid, self.log)
        shell.told.on_state = keep
        try:
            await shell.open(self.execer, scope, env=env, cwd=cwd, state=state)
            scheduling.prompt(shell.pid)
        except BaseException:
            shell.send(signal.SIGKILL)  # a loop in what it was told to begin with would go on for good
            shell.close()
            raise
        return shell

    def new_place(self, prefix: str = "") -> Place:
        """A folder name that no shell has had."""
        self.shells += 1
        name = f"{prefix}{self.shells}"
        return Place(self.folder / "s" / name, f"{names.INSIDE}/{name}")

    def give_back(self, scope: Scope) -> None:
        """Empty, and no longer used."""
        if self.cgroup:
            self.cgroup.give_back(scope)

    # -- starting

    def sweep(self) -> None:
        """Removes what an earlier node's shells and executes left in the folder."""
        for left in (*(self.folder / "s").iterdir(), *(self.folder / "x").iterdir()):
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    async def start(self) -> None:
        """Raises HostError."""
        self.share.prepare()
        await self._start()
        for _ in range(_AGAIN):
            if not self.writable.missed():
                break
            _log.warning(
                "sandbox %s was started without its disk, which another Podman command has unmounted", self._id
            )
            await self._podman.stop(self.container)
            await self.writable.prepare(self.container, None)
            await self._start()

    async def _start(self) -> None:
        try:
            await self._podman.start(self.container)
        except HostError as error:
            if "already exists" not in error.message:
                raise
            # Podman's service died in the middle of this start: the runtime knows a container that Podman does not.
            argv = [self._runtime.binary, "--root", self._runtime.state_root, "delete", "--force", self.container]
            await (await asyncio.create_subprocess_exec(*argv, env=dict(self._runtime.environment))).wait()
            await self._podman.start(self.container)

    async def look(self, *, fresh: bool = False) -> dict[str, Any]:
        """The container has been started: watches its init, reads its limits back. Returns Podman's GraphDriver.

        fresh: this is its first start.

        Raises HostError, SandboxLost, and OSError where init ends meanwhile: what is read under /proc goes with it.
        """
        found = self._started() if fresh else None
        found = found or await self._podman.inspect(self.container)
        pid = self.init.pid = int(found["State"]["Pid"])
        if not pid:
            raise SandboxLost(f"the sandbox's init ended at its start with {found['State']['ExitCode']}")
        self.init.watch(pid, int(found["State"].get("ConmonPid") or 0))
        if not fresh:
            freezer.thaw(pid)  # a node that was killed while it copied the box has left it frozen
        bundle = Path(found["OCIConfigPath"]).parent
        self._execer = OciExec(self._runtime, self.container, bundle, self.folder / "x")
        await asyncio.gather(self._execer.look(self._spawner, pid), self._cap(pid))
        self.memory = recycle.memory_mounts(pid, self._shown())
        self.cgroup = BoxCgroup(pid, self._runtime.starts_in_cgroup)
        self._oom_kills = self.cgroup.oom_kills()
        self.unenforced = profile.verify(pid, self._config) + disk.unenforced(pid, self._config)
        self.share.attach(self.cgroup.memory, self.unenforced, profile.cpus_of(pid))
        self._execer.environment = self.environment.begin(self._execer.environment, self.share.variables)
        if not self.cgroup.enforced:
            self.unenforced.append("kill-scope")
        return found.get("GraphDriver") or {}

    def _started(self) -> dict[str, Any] | None:
        """None where Podman must be asked, as of a box whose init has ended already."""
        store = self._runtime.store
        try:
            bundle = msgspec.json.decode(Path(started.config_path(store, self.container)).read_bytes())
        except (OSError, msgspec.DecodeError):
            return None
        found = started.read(store, self._runtime.run_store, self.container, str(bundle["root"]["path"]))
        return found if found and self.is_mine(found["State"]["Pid"]) else None

    async def _cap(self, pid: int) -> None:
        try:
            await limit_counters(self._spawner, pid)
        except EnterFailed as error:
            _log.warning("sandbox %s: what all sandboxes share cannot be capped for it: %s", self._id, error)

    async def remember(self, graph: dict[str, Any], *, fresh: bool) -> None:
        """What the box is before its first command, for its recycling. fresh: this is its first start.

        graph: of `look`.
        """
        self.writable.started(graph)
        if fresh:
            try:
                self.baseline = await asyncio.to_thread(recycle.baseline, self.init.pid, graph, self._shown())
            except recycle.NotRecyclable as error:
                self.not_recyclable = str(error)
        elif self.baseline:
            self.baseline, self.not_recyclable = None, "it was stopped and started again"

    def _shown(self) -> list[str]:
        return [mount.destination for mount in self._config.parsed_mounts]

    # -- ending

    def is_mine(self, pid: int) -> bool:
        """Whether that is this box's init: after a crash Podman may name the pid of somebody else."""
        try:
            mounts = Path(f"/proc/{pid}/mountinfo").read_text()
        except OSError:
            return False
        return f"/b/{self._id}/s" in mounts

    async def kill_all(self) -> None:
        """Everything but init."""
        await cgroup.kill(self.running_cgroup.everything)

    async def recorded_code(self, code: int | None) -> int | None:
        """What conmon, whose child init was, has told Podman; None where it died before it could.

        code: where init was our own child, which it becomes when conmon is killed.
        """
        await self.init.conmons_end()
        try:
            found = await self._podman.inspect(self.container)
        except (HostError, SandboxNotFound):
            return code
        leave_exit(found, code)
        return exit_code(found) if code is None else code

    def forget(self) -> None:
        """Lets go of what this process holds of it, whether it lives on or not."""
        self.init.forget()
        if self.cgroup:
            self.cgroup.remove()
        self.share.close()

    def remove_traces(self) -> None:
        """Podman has removed the container: so goes the rest."""
        profile.remove_cgroups(self.container)
        self.environment.clear()
        self.log_file.close(remove=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- reading

    def frozen(self) -> AbstractAsyncContextManager[None]:
        """A context in which no process of it runs."""
        return self.hold.frozen(self.init.pid)

    def stats(self) -> Stats:
        """Counters of the box's cgroups; zero where this host keeps none. Blocks: it adds up the writable layer."""
        limits, group = profile.enforced(self.init.pid), self.running_cgroup
        usage = group.usage()
        used, limit = self.writable.usage(self.init.pid)
        return Stats(
            cpu_s=usage.cpu_s,
            memory_bytes=usage.memory_bytes,
            memory_limit=int(limits["memory"] or 0),
            pids=usage.pids,
            pids_limit=int(limits["pids"] or 0),
            oom_kills=group.oom_kills(),
            disk_bytes=used,
            disk_limit=limit,
        )


def exit_code(found: Mapping[str, Any]) -> int | None:
    """Of `podman inspect`; None where Podman heard of no end, or that of conmon only."""
    code = int(found["State"]["ExitCode"])
    return code if found["State"]["Status"] in ("exited", "stopped") and code >= 0 else None
