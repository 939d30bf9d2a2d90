"""One sandbox's life on this host.

In: a container that Podman has made. Out: sessions, executes and files while it runs, and one word for its state.
Leaves the table of states to lifecycle.py, the registry, owners and names to host.py, Podman's API to podman.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from socket import socket as Socket
from typing import Any

import msgspec

from rockroll import home
from rockroll.errors import (
    HostError,
    LimitNotEnforced,
    RockrollError,
    SandboxError,
    SandboxLost,
    SandboxNotFound,
    SessionError,
    UsageError,
)
from rockroll.sandbox import (
    cgroup,
    disk,
    files,
    freezer,
    layer,
    netns,
    processes,
    profile,
    recycle,
    saved,
    scheduling,
    terminal,
)
from rockroll.sandbox.cgroup import BoxCgroup, Scope
from rockroll.sandbox.commands import Commands
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.environment import Changes, Environment
from rockroll.sandbox.execute import execute
from rockroll.sandbox.feed import Tether
from rockroll.sandbox.gate import Gate
from rockroll.sandbox.lifecycle import Facts, after, cause_of, story
from rockroll.sandbox.oci_exec import OciExec, Runtime
from rockroll.sandbox.podman import Podman, leave_exit
from rockroll.sandbox.process import Process
from rockroll.sandbox.saved import Saved, SavedSession, Slot
from rockroll.sandbox.session import Session
from rockroll.sandbox.share import Share
from rockroll.sandbox.shell import Place, Shell
from rockroll.sandbox.snapshot import Fill
from rockroll.sandbox.spawner import Spawner
from rockroll.sandbox.spool import Spool
from rockroll.sandbox.wire import (
    Cause,
    Execute,
    Observation,
    Outcome,
    Owner,
    ProcessInfo,
    Run,
    SandboxInfo,
    SessionInfo,
    Start,
    State,
    Stats,
    Terminal,
    TerminalEnd,
)

INSIDE = "/dev/rr"
"""Where a box sees the folder of its sessions, read-only. /dev is a tmpfs: the mount point leaves no file behind.
Short, because bash reads what is typed to it one byte at a time, and every command names it five times."""
PF_EXITING = 0x4
CALLS_S = 5.0
"""A call whose process has been killed ends within milliseconds."""
CONMON_S = 10.0
"""Conmon ends some 0.1 s after the box's init; longer than this it hangs, and Podman is asked all the same."""
_log = logging.getLogger(__name__)


class Endpoint:
    """The node's hooks for the socket that listens inside each box."""

    def __init__(
        self,
        port: int | None = None,
        on_open: Callable[[str, Socket], Awaitable[None]] | None = None,
        on_gone: Callable[[str], None] | None = None,
    ) -> None:
        self.port, self._on_open, self._on_gone = port, on_open, on_gone

    async def open(self, sandbox_id: str, pid: int) -> None:
        if self.port is not None and self._on_open is not None:
            await self._on_open(sandbox_id, netns.listen_in(pid, self.port))

    def gone(self, sandbox_id: str) -> None:
        if self._on_gone is not None:
            self._on_gone(sandbox_id)


class Box:
    """Its states are drawn in lifecycle.py. What needs a running box raises SandboxLost or SandboxError without."""

    def __init__(
        self,
        *,
        id: str,
        name: str,
        config: SandboxConfig,
        owner: Owner,
        created: float,
        env: Mapping[str, str],
        podman: Podman,
        runtime: Runtime,
        spawner: Spawner,
        endpoint: Endpoint,
        changed: Callable[[Box], None] = lambda _: None,
    ) -> None:
        """changed: called after its state or cause has changed for good."""
        self.id, self.name, self.config, self.created = id, name, config, created
        self.owner: Owner = owner
        self.container = ""
        self.state: State = "starting"
        self.cause: Cause | None = None
        """How it ended; None while it runs, and where somebody stopped it."""
        self.ended: float | None = None
        self.last_used = time.monotonic()
        """When a call named it last."""
        self.calls = 0
        """Calls under way that hold its idle time back: see in_use."""
        self.unenforced: list[str] = []
        self.log_file = Spool(spool_path(id))
        self.commands = Commands(id, self._run_command, self._need_running)
        self._env = dict(env)
        self._podman, self._runtime, self._endpoint = podman, runtime, endpoint
        self._spawner = spawner
        self._folder = folder_of(id)
        make_folder(id)
        self._disk = disk.Disk(id)
        self._hold = freezer.Hold()
        self.share = Share(self._folder, config)
        self._environment = Environment(environment_path(id))
        self._sessions: dict[str, Session] = {}
        self._saved = Saved(id)
        self._slots: dict[Scope, Slot] = {}
        self._past: dict[str, SavedSession] = {}
        """Sessions that come back at their next command."""
        self._told_late: dict[str, Changes] = {}
        """Variables of `change_environment` that such a session has not been told of."""
        self._changed = changed
        self._leaving: Outcome | None = None
        self._asked: Cause | None = None
        self._starts = 0
        self._oom_kills = 0
        self._baseline: recycle.Baseline | None = None
        self._not_recyclable = "it was started by an earlier node"
        self._upper: Path | None = None
        self._init = 0
        self._init_end: Process | None = None
        self._memory: dict[str, int] = {}
        """The file systems in memory, by their mount points."""
        self._conmon: Process | None = None
        self._cgroup: BoxCgroup | None = None
        self._execer: OciExec | None = None
        self._loose = False
        """Whether an init may live that nobody watches: a start has failed."""
        self._closing: asyncio.Task[None] | None = None
        self._turns: set[asyncio.Task[None]] = set()
        """Stops and starts under way: they go on to their end when their callers do not."""
        self._life = asyncio.Lock()
        """Held by stop, start, recycle and remove: Podman does not bear two of them on one container."""
        self._shells = 0
        self._uses = 0
        """How often the box has been recycled."""
        self._calling = 0
        """Calls under way that have or may get a process in the box."""
        self._no_calls = asyncio.Event()
        self._no_calls.set()
        self._busy: str = ""
        """What is being done to it that bears no command meanwhile."""
        self._removed = False
        self.writers = Gate()
        """Shared by what the node writes into the box's files, for one step each; alone: nobody writes."""

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Around whatever is done with the box: it is not idle until the end of that."""
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1
            self.last_used = time.monotonic()

    # -- what sessions and executes ask

    @property
    def execer(self) -> OciExec:
        if self._execer is None:
            raise self._not_running()
        return self._execer

    @property
    def uid(self) -> int:
        return files.host_id(self._init, "uid", self.execer.uid)

    @property
    def owner_ids(self) -> tuple[int, int]:
        """(uid, gid) on this host of the box's user."""
        return self.uid, files.host_id(self._init, "gid", self.execer.gid)

    @property
    def init(self) -> int:
        """Init's pid on the host. Raises SandboxLost when the box does not run."""
        if self.state not in ("running", "paused"):
            raise self._not_running()
        return self._init

    @property
    def init_end(self) -> asyncio.Future[int | None]:
        """Done when the init that runs now has ended. Raises SandboxLost when the box does not run."""
        if not self.init or self._init_end is None:
            raise self._not_running()
        return self._init_end.ended

    def doomed(self) -> Outcome | None:
        if self._leaving:
            return self._leaving
        if self.state not in ("starting", "running", "paused"):
            return "lost"
        # Init dies first and last: the kernel kills all others before its death shows on the pidfd.
        try:
            fields = Path(f"/proc/{self._init}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return "lost"
        return "lost" if int(fields[6]) & PF_EXITING else None

    def held_s(self) -> float:
        return self._hold.seconds()

    async def thawed(self) -> None:
        await self._hold.over()

    def oom_killed(self) -> bool:
        before = self._oom_kills
        self._oom_kills = self._cgroup.oom_kills() if self._cgroup else 0
        return self._oom_kills > before

    async def new_shell(self, scope: Scope, env: Mapping[str, str], cwd: str | None, state: bytes) -> Shell:
        self._shells += 1
        name = str(self._shells)
        shell = Shell(Place(self._folder / "s" / name, f"{INSIDE}/{name}"), self.uid, self.log)
        if slot := self._slots.get(scope):
            shell.on_state = slot.keep
        try:
            await shell.open(self.execer, scope, env=env, cwd=cwd, state=state)
            scheduling.prompt(shell.pid)
        except BaseException:
            shell.close()
            raise
        return shell

    def log(self, data: bytes) -> None:
        self.log_file.write(data)

    # -- life

    async def up(self, container: str, fill: Fill | None = None) -> None:
        """Starts the container and makes it ready: limits read back, endpoint open, baseline taken.

        fill: puts files into its writable layer before the first start.
        Raises HostError, SandboxLost; the caller removes the box then.
        """
        self.container = container
        self._leaving = None
        if fill or self.config.disk:
            upper = await self._layer()
            if fill:
                await self._fill(upper, fill)
        self.share.prepare()
        try:
            await self._podman.start(container)
        except HostError as error:
            if "already exists" not in error.message:
                raise
            # Podman's service died in the middle of this start: the runtime knows a container that Podman does not.
            argv = [self._runtime.binary, "--root", self._runtime.state_root, "delete", "--force", container]
            await (await asyncio.create_subprocess_exec(*argv, env=dict(self._runtime.environment))).wait()
            await self._podman.start(container)
        self._starts += 1
        await self._attach(fresh=self._starts == 1)

    async def make_disk(self) -> list[dict[str, Any]]:
        """The disk that its config asks for, if it does; the OCI mounts that the container then needs, [] without one.

        Raises LimitNotEnforced.
        """
        size, owner = self.config.disk_bytes, profile.first_id(self.config)
        if size is None:
            return []
        try:
            return await disk.whole(lambda: self._disk.make(size, owner, resolvers=self.config.network != "none"))
        except disk.NoDisk as error:
            if self.config.allow_unenforced:
                return []
            raise LimitNotEnforced(
                f"this host does not enforce disk: {error}; set allow_unenforced to run without"
            ) from None

    async def _layer(self) -> Path:
        """The writable layer on the host, its own disk mounted where it has one."""
        found = await self._podman.inspect(self.container)
        upper = ((found.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
        if not upper:
            raise HostError("Podman's storage driver here has no writable layer to copy; use overlay (storage.conf)")
        if found["Config"]["Labels"].get(disk.LABEL):
            await disk.whole(lambda: self._disk.attach(Path(upper).parent))
        return Path(upper)

    async def _fill(self, upper: Path, fill: Fill) -> None:
        try:
            await fill(upper)
        except layer.NoSpace:
            if self.config.disk is None:
                raise
            raise UsageError(
                f"disk: {self.config.disk} has no room for the files that the sandbox should begin with; ask for more"
            ) from None

    async def copy_files(self, target: Path) -> None:
        """Copies what the box has written into an empty folder; a running box is held still meanwhile, and so are
        uploads into it."""
        async with self._life:
            self._need_container()
            if self.state not in ("running", "stopped", "exited"):
                raise self._not_running()
            upper = await self._layer()
            still = self._hold.frozen(self._init) if self.state == "running" else contextlib.nullcontext()
            async with self.writers.alone(), still:
                await layer.copy(upper, target)

    async def image_id(self) -> str:
        """The image that the box stands on, however its name has moved since."""
        if not self.container:
            raise self._not_running()
        return str((await self._podman.inspect(self.container))["Image"])

    async def adopt(self, container: str, state: State, cause: Cause | None, ended: float | None) -> None:
        """A box that an earlier node left. Where its init lives, what that node's sessions ran is killed and they come
        back at their next command; else it is `stopped` or `exited`, for a restore; `exited` too where it could not be
        taken over. state, cause, ended: as that node knew them. Raises SandboxNotFound where Podman knows it no more.
        """
        self.container = container
        self._starts += 1
        for left in (*(self._folder / "s").iterdir(), *(self._folder / "x").iterdir()):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self._past = self._saved.load()
        try:
            await self._take_over(state, cause, ended)
        except SandboxNotFound:
            raise
        except (RockrollError, OSError) as error:
            _log.warning("sandbox %s of an earlier node could not be taken over: %s", self.id, error)
            await self._fall(cause or "runtime_crash", ended)

    async def _take_over(self, state: State, cause: Cause | None, ended: float | None) -> None:
        container = self.container
        found = await self._podman.inspect(container)
        if self._is_mine(int(found["State"]["Pid"])):
            await self._attach(fresh=False)
            assert self._cgroup is not None
            await cgroup.kill(self._cgroup.everything)
        elif state == "stopped":
            self.state = state
            leave_exit(found, None)
        else:
            oom = bool(found["State"].get("OOMKilled"))
            self.state, self.ended = "exited", ended or time.time()
            self.cause = cause or cause_of(Facts(code=_exit_code(found), oom=oom, watched=False))
            leave_exit(found, None)
        self._changed(self)

    def _is_mine(self, pid: int) -> bool:
        """Whether that is this box's init: after a crash Podman may name the pid of somebody else."""
        try:
            mounts = Path(f"/proc/{pid}/mountinfo").read_text()
        except OSError:
            return False
        return f"/b/{self.id}/s" in mounts

    async def _attach(self, *, fresh: bool) -> None:
        try:
            await self._look_at(fresh=fresh)
        except OSError as error:
            if not self.doomed():
                raise
            # Deleted or killed meanwhile: what is read under /proc goes with init, at any of the reads.
            raise SandboxLost("the sandbox ended while it was being started") from error

    async def _look_at(self, *, fresh: bool) -> None:
        found = await self._podman.inspect(self.container)
        self._init = int(found["State"]["Pid"])
        if not self._init:
            raise SandboxLost(f"the sandbox's init ended at its start with {found['State']['ExitCode']}")
        self._watch_init(int(found["State"].get("ConmonPid") or 0))
        freezer.thaw(self._init)  # a node that was killed while it copied the box has left it frozen
        bundle = Path(found["OCIConfigPath"]).parent
        self._execer = OciExec(self._runtime, self.container, bundle, self._folder / "x")
        await self._execer.look(self._spawner, self._init)
        shown = [mount.destination for mount in self.config.parsed_mounts]
        self._memory = recycle.memory_mounts(self._init, shown)
        self._cgroup = BoxCgroup(self._init, self._runtime.starts_in_cgroup)
        self._oom_kills = self._cgroup.oom_kills()
        self.unenforced = profile.verify(self._init, self.config) + disk.unenforced(self._init, self.config)
        self.share.attach(self._cgroup.memory, self.unenforced, profile.cpus_of(self._init))
        self._execer.environment = self._environment.begin(self._execer.environment, self.share.variables)
        if not self._cgroup.enforced:
            self.unenforced.append("kill-scope")
        await self._endpoint.open(self.id, self._init)
        graph = found.get("GraphDriver") or {}
        upper = (graph.get("Data") or {}).get("UpperDir")
        self._upper = Path(upper) if upper else None
        if fresh:
            try:
                self._baseline = await asyncio.to_thread(recycle.baseline, self._init, graph, shown)
            except recycle.NotRecyclable as error:
                self._not_recyclable = str(error)
        elif self._baseline:
            self._baseline, self._not_recyclable = None, "it was stopped and started again"
        self.state = after(self.state, "started") if self.state == "starting" else self.state

    def _watch_init(self, conmon: int) -> None:
        if self._init_end:
            self._init_end.forget()
        try:
            self._init_end = Process(self._init)
        except ProcessLookupError:
            raise SandboxLost("the sandbox's init ended at its start") from None
        self._init_end.ended.add_done_callback(self._on_init_end)
        # Conmon is an orphan of Podman's, so this subreaper's child: unless somebody waits for it, it stays a zombie.
        if conmon:
            try:
                self._conmon = Process(conmon)  # watched until its end, which comes after the box's
            except ProcessLookupError:
                self._conmon = None

    def _on_init_end(self, status: asyncio.Future[int | None]) -> None:
        self.state = after(self.state, "stop" if self._leaving == "killed" else "died")
        self._endpoint.gone(self.id)
        # The counter is read now: its cgroup goes with the container.
        bury = self._bury(status.result(), self.oom_killed())
        self._closing = asyncio.get_running_loop().create_task(bury)

    async def _bury(self, status: int | None, oom: bool) -> None:
        """Ends the sessions of a box whose init has died, and finds the cause."""
        ended = time.time()
        await self._close_sessions()
        code = None if self._asked else await self._recorded_code(None if status is None else _as_shell(status))
        if self.state == "exited":
            self.cause, self.ended = cause_of(Facts(asked=self._asked, code=code, oom=oom)), ended
            self._changed(self)

    async def _recorded_code(self, code: int | None) -> int | None:
        """What conmon, whose child init was, has told Podman; None where it died before it could.

        code: where init was our own child, which it becomes when conmon is killed.
        """
        if self._conmon:
            await asyncio.wait([self._conmon.ended], timeout=CONMON_S)
        try:
            found = await self._podman.inspect(self.container)
        except (HostError, SandboxNotFound):
            return code
        leave_exit(found, code)
        return _exit_code(found) if code is None else code

    async def _death(self) -> None:
        """Returns when a box that is dying is dead and its cause known."""
        if self._init_end:
            await asyncio.wait([self._init_end.ended], timeout=CONMON_S)
        if self._closing:
            await asyncio.shield(self._closing)

    async def stop(self) -> None:
        """Ends everything in the box; its files stay. Where Podman cannot, it runs on as it was."""
        await self._whole(self._stop())

    async def _stop(self) -> None:
        async with self._life:
            self._need_container()
            if self.state == "stopped":
                return
            stopped = after(self.state, "stop")
            self._leaving = "killed"
            try:
                await self._podman.stop(self.container)
            except BaseException:
                if self.state != "stopped":  # else it did what was asked, only without an answer
                    self._leaving = None
                    raise
            await self._end_init()
            self.state, self.cause, self.ended = stopped, None, None
            self._changed(self)

    async def _whole(self, work: Coroutine[Any, Any, None]) -> None:
        """In a task of the box's own: half a start would be a box that nobody knows."""
        task = asyncio.get_running_loop().create_task(work)
        self._turns.add(task)
        task.add_done_callback(self._turns.discard)
        await asyncio.shield(task)

    async def start(self, *, sessions: bool = False) -> None:
        """Again after stop or death; the endpoint is bound anew before any command runs.

        sessions: each comes back with its state at its next command; else it is new then, and says so.
        """
        await self._whole(self._start(sessions))

    async def _start(self, sessions: bool) -> None:
        async with self._life:
            self._need_container()
            if self.state == "running":
                return
            cause, ended, starting = self.cause, self.ended, after(self.state, "start")
            await self._end_init()
            self.state = starting
            try:
                past = self._saved.load() or self._past
                if not sessions:
                    past = {name: saved.fresh(name, {}, None) for name in past}
                    self._saved.clear()
                self._past = past
                await self.up(self.container)
            except BaseException:
                await self._fall(cause or "runtime_crash", ended)
                raise
            self.cause = self.ended = None
            self._changed(self)

    async def restore(self, *, restart: bool = False) -> tuple[Cause | None, list[str], list[str]]:
        """Brings a dead or stopped box back with its files and sessions: how it had ended, the sessions that come back,
        what is lost. A box that runs is left alone, or stopped first with `restart`.
        """
        lost: list[str] = []
        if restart and self.state in ("running", "paused"):
            assert self._cgroup is not None
            lost = [f"{len(self._cgroup.everything())} processes"]
            await self.stop()
        if self.state == "running" and not self.doomed():
            return None, sorted(self._past), []
        await self._death()
        cause, memory = self.cause, self._memory
        await self.start(sessions=True)
        if emptied := [point for point, id in self._memory.items() if not id or memory.get(point) != id]:
            lost.append(f"files in memory: {', '.join(emptied)}")
        torn = sorted(name for name, session in self._past.items() if not session.whole)
        lost += [f"the state of session {name!r}" for name in torn]
        lost = lost if restart and lost else ["every process that ran, background jobs too", *lost]
        return cause, sorted(self._past), lost

    async def _fall(self, cause: Cause, ended: float | None) -> None:
        """The box could not be brought up, or not be taken over: `exited`, whatever of it runs."""
        self.state, self._loose = "exited", True
        try:
            await self._end_init()
        except (RockrollError, OSError) as error:
            _log.warning("sandbox %s: what is left of it ends at the next start: %s", self.id, error)
        self.state, self.cause, self.ended = "exited", cause, ended or time.time()
        self._changed(self)

    def _init_lives(self) -> bool:
        return self._init_end is not None and not self._init_end.ended.done()

    async def _end_init(self) -> None:
        """Init is dead, and so is every session. Raises HostError, SandboxNotFound where Podman must be asked."""
        if self._loose and not self._init_lives():
            found = await self._podman.inspect(self.container)
            if self._is_mine(int(found["State"]["Pid"])):
                self._init = int(found["State"]["Pid"])
                with contextlib.suppress(SandboxLost):
                    self._watch_init(int(found["State"].get("ConmonPid") or 0))
        if self._init_end and self._init_lives():
            freezer.thaw(self._init)  # on cgroup v1 what is frozen does not die
            self._init_end.send(signal.SIGKILL)
            await asyncio.shield(self._init_end.ended)
        self._loose = False
        if self._closing:
            await self._closing

    async def remove(self, cause: Cause = "deleted") -> None:
        """Deletes the container and every trace of it on this host. Never fails for what is gone already; where it
        fails (HostError) the box is there still, and can be removed again.

        cause: why, unless it has died of something before.
        """
        async with self._life:
            if self._removed:
                return
            self._leaving, self._asked = "lost", cause
            try:
                await self._podman.remove(self.container or container_name(self.id))
                if self._disk.exists():
                    await disk.whole(self._disk.remove)
            except BaseException:
                self._leaving = self._asked = None
                raise
            if self._init_end and not self._init_end.ended.done():
                await asyncio.wait([self._init_end.ended], timeout=5)
            if self._closing:
                await self._closing
            await self._close_sessions()
            await self.commands.clear()
            self._forget()
            profile.remove_cgroups(self.container)
            self._endpoint.gone(self.id)
            self._environment.clear()
            self.log_file.close(remove=True)
            shutil.rmtree(self._folder, ignore_errors=True)
            self._saved.clear()
            self._removed = True
            self.state, self.cause = after(self.state, "removed"), self.cause or cause
            self.ended = self.ended or time.time()

    @contextlib.asynccontextmanager
    async def being_made(self) -> AsyncIterator[None]:
        """A removal that comes meanwhile waits: it would find nothing of what Podman is just making."""
        async with self._life:
            self._need_container()
            yield

    def _need_container(self) -> None:
        if self._removed:
            raise SandboxNotFound(f"sandbox {self.id} is gone; {story(self.cause, self.ended)}", cause=self.cause)

    async def leave(self) -> None:
        """The node ends and the box goes on: its sessions end, init and files stay for the next node."""
        async with self._life:
            if self._closing:
                await self._closing
            await self._close_sessions()
            await self.commands.close()
            self._forget()
            if self._conmon:
                self._conmon.forget()
            self.log_file.close(remove=False)

    def _forget(self) -> None:
        if self._init_end:
            self._init_end.forget()
        if self._cgroup:
            self._cgroup.remove()
        self.share.close()

    async def _close_sessions(self) -> None:
        sessions, self._sessions = self._sessions, {}
        await asyncio.gather(*(session.close() for session in sessions.values()))
        for session in sessions.values():
            if slot := self._slots.pop(session.scope, None):
                slot.close()
            if self._cgroup:
                self._cgroup.give_back(session.scope)
            self._told_late[session.name] = {**self._told_late.get(session.name, {}), **session.pending()}

    # -- commands

    async def create_session(self, name: str, env: Mapping[str, str], cwd: str | None) -> Session:
        """Opens a session. Raises SessionError where one has that name, also one that is yet to come back."""
        if name in self._sessions:
            raise SessionError(f"session {name!r} exists; close it first or use another name")
        past = self._past.get(name)
        if past and past != saved.fresh(name, {}, None):
            raise SessionError(
                f"session {name!r} comes back at its next command with all it knew; close it first to begin anew, or"
                " use another name"
            )
        self._past.pop(name, None)
        session = self._make_session(name, env, cwd)
        try:
            await session.open()
        except BaseException:
            await self.close_session(name)
            raise
        return session

    def _make_session(self, name: str, env: Mapping[str, str], cwd: str | None) -> Session:
        self._need_running()
        assert self._cgroup is not None
        past = self._past.pop(name, None)
        kept = past or saved.fresh(name, env, cwd)
        scope = self._cgroup.scope(keeps=True)
        session = Session(self, name, scope, env=kept.env, cwd=kept.cwd, past=past.state if past else None)
        if past and (late := self._told_late.pop(name, {})):
            session.change_env(late)
        self._sessions[name] = session
        self._slots[session.scope] = self._saved.slot(kept)
        return session

    def _need_running(self) -> None:
        if self.state != "running" or self._leaving or self._busy:
            raise self._not_running()

    async def close_session(self, name: str) -> None:
        """Ends a session and all it runs. Raises SessionError where there is none of that name."""
        if name not in self._sessions and self._past.pop(name, None):
            self._saved.forget(name)
            return
        session = self._session(name)
        await session.close()
        if self._sessions.get(name) is session:
            del self._sessions[name]
            self._saved.forget(name)
        if slot := self._slots.pop(session.scope, None):
            slot.close()
        if self._cgroup:
            self._cgroup.give_back(session.scope)

    def _session(self, name: str) -> Session:
        try:
            return self._sessions[name]
        except KeyError:
            there = ", ".join(sorted(self._sessions)) or "none"
            raise SessionError(f"no session {name!r}; open: {there}") from None

    def sessions(self) -> list[Session]:
        return list(self._sessions.values())

    def session_infos(self) -> list[SessionInfo]:
        """Those that are open, and those that come back at their next command."""
        past = [SessionInfo(session=name, pid=0, busy=False, created=self.created) for name in self._past]
        return [session.info() for session in self._sessions.values()] + past

    async def run(self, body: Run, label: str = "", tether: Tether | None = None) -> Observation:
        """One command in a session, which is made on first use."""
        with self._call():
            return await self._answer(self._run(body, label, tether))

    async def execute(self, body: Execute, tether: Tether | None = None) -> Observation:
        """One program without a shell."""
        with self._call():
            return await self._answer(self._execute(body, tether))

    async def _answer(self, work: Coroutine[Any, Any, Observation]) -> Observation:
        """What a call comes to; where the box dies under it, with the cause."""
        with self.in_use():
            try:
                done = await work
            except (SandboxLost, SessionError):
                if not self.doomed():
                    raise
                await self._death()
                raise self._not_running() from None
        if done.outcome != "lost":
            return done
        await self._death()
        return msgspec.structs.replace(done, cause=self.cause or self._asked)

    async def _run(self, body: Run, label: str, tether: Tether | None) -> Observation:
        self._need_running()
        self.share.refresh()
        session = self._sessions.get(body.session) or self._make_session(body.session, {}, None)
        return await session.run(
            body.command, timeout=body.timeout, max_output=body.max_output, label=label, tether=tether
        )

    async def _run_command(self, body: Start, tether: Tether) -> Observation:
        common = {"id": body.id, "timeout": body.timeout, "max_output": body.max_output}
        if body.argv is not None:
            return await self.execute(Execute(argv=body.argv, env=body.env, cwd=body.cwd, **common), tether)
        run = Run(command=body.command or b"", session=body.session, **common)
        return await self.run(run, body.command_id, tether)

    async def _execute(self, body: Execute, tether: Tether | None) -> Observation:
        self._need_running()
        self.share.refresh()
        assert self._cgroup is not None
        scope, use = self._cgroup.scope(), self._uses
        try:
            done = await execute(self, scope, body, tether)
            if use != self._uses and done.exit_code == 128 + signal.SIGKILL:
                return msgspec.structs.replace(done, outcome="killed", exit_code=None)
            return done
        finally:
            if self._cgroup:
                self._cgroup.give_back(scope)

    # -- anew

    async def recycle(self, quiet: Callable[[], Awaitable[None]]) -> str | None:
        """Makes the box as it was before its first command; None, or the reason why that cannot be.

        quiet: ends what others do with its files. From before that call on, `need_rest` refuses them more of it.
        """
        async with self._life:
            self._need_container()
            self._need_running()
            self._busy = "being recycled"
            try:
                return await self._recycle(quiet)
            finally:
                self._busy = ""

    async def _recycle(self, quiet: Callable[[], Awaitable[None]]) -> str | None:
        assert self._cgroup is not None
        if self._baseline is None:
            return self._not_recyclable
        self._uses += 1
        await quiet()
        await self.commands.clear()  # first: one that waits for its turn would else begin as a session ends
        await self._close_sessions()
        self._past, self._told_late = {}, {}
        self._saved.clear()
        await self.execer.settled()
        if not await cgroup.kill(self._cgroup.everything):
            return "a process outlived SIGKILL for 5 s"
        try:
            async with asyncio.timeout(CALLS_S):
                await self._no_calls.wait()
        except TimeoutError:
            return f"a call did not end within {CALLS_S:g} s of its process"
        if self.doomed():
            return "its init is dead"
        try:
            await asyncio.to_thread(recycle.renew, self._init, self._baseline)
        except recycle.NotRecyclable as error:
            return str(error)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        if self._cgroup.everything() or self.doomed():
            return "a process was started while it was being recycled"
        self.log_file.reset()
        self.execer.environment = self._environment.clear()
        return None

    def need_rest(self) -> None:
        """SandboxError while something is done to the box that bears nothing beside it."""
        if self._busy:
            raise self._not_running()

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        self._calling += 1
        self._no_calls.clear()
        try:
            yield
        finally:
            self._calling -= 1
            if not self._calling:
                self._no_calls.set()

    # -- what runs in it, its environment, a terminal

    def everything(self) -> list[int]:
        """The host's pids of every process but init. SandboxLost when the box does not run."""
        _ = self.init
        assert self._cgroup is not None
        return self._cgroup.everything()

    def processes(self) -> list[ProcessInfo]:
        """Every process, init first. Blocks."""
        everything = self.everything()  # first: what moves between two groups meanwhile is in one of them all the same
        members = {session.name: session.scope.everything() for session in self.sessions()}
        return processes.listed(self.init, everything, members)

    def environment(self) -> dict[str, str]:
        """What a program gets that starts now."""
        return dict(self.execer.environment)

    def change_environment(self, changes: Changes) -> dict[str, str]:
        """For programs and shells that start from now on, and for open sessions from their next command on."""
        self._need_running()
        self.execer.environment = self._environment.change(changes)
        for session in self.sessions():
            session.change_env(changes)
        for name in self._past:
            self._told_late[name] = {**self._told_late.get(name, {}), **changes}
        return self.environment()

    async def terminal(self, body: Terminal) -> TerminalEnd:
        """A shell on a terminal of its own, in nobody's kill scope, until it ends. Cancelled: it is hung up."""
        self._need_running()
        use, found = self._uses, None
        if body.session is not None:
            past = self._past.get(body.session)
            found = (past.state, past.env, past.cwd, False) if past else self._session(body.session).saved()
        self._shells += 1
        name = f"t{self._shells}"
        place = Place(self._folder / "s" / name, f"{INSIDE}/{name}")
        with self._call():
            code = await terminal.run(self.execer, place, self.owner_ids, body, found)
        if self.doomed():
            return TerminalEnd(exit_code=code, note=f"sandbox {self.name} has ended, and this shell with it")
        if use != self._uses:
            return TerminalEnd(exit_code=code, note=f"sandbox {self.name} was recycled, and this shell ended with it")
        return TerminalEnd(exit_code=code)

    # -- telling

    def info(self) -> SandboxInfo:
        return SandboxInfo(
            id=self.id,
            name=self.name,
            state=self.state,
            image=self.config.image_name,
            node=os.uname().nodename,
            created=self.created,
            owner=self.owner,
            labels=dict(self.config.labels),
            unenforced=list(self.unenforced),
            env={**self.config.env, **self._env},
            cause=self.cause,
            ended=self.ended,
        )

    def stats(self) -> Stats:
        """Counters of the box's cgroups; zero where this host keeps none. Blocks: it adds up the writable layer."""
        limits = profile.enforced(self.init)
        assert self._cgroup is not None
        usage = self._cgroup.usage()
        used, limit = disk.usage(self.init) if self._disk.exists() else (0, 0)
        return Stats(
            cpu_s=usage.cpu_s,
            memory_bytes=usage.memory_bytes,
            memory_limit=int(limits["memory"] or 0),
            pids=usage.pids,
            pids_limit=int(limits["pids"] or 0),
            oom_kills=self._cgroup.oom_kills(),
            disk_bytes=used if limit else recycle.disk_bytes(self._upper) if self._upper else 0,
            disk_limit=limit,
        )

    def _not_running(self) -> Exception:
        if self._asked or self.state == "gone":
            cause = self.cause or self._asked
            return SandboxLost(f"sandbox {self.id} is gone; {story(cause, self.ended)}", cause=cause)
        if self.state == "exited":
            said = f"sandbox {self.id} is exited; {story(self.cause, self.ended)}"
            return SandboxLost(f"{said}; `restore` brings its files and sessions back", cause=self.cause)
        if self.state == "stopped":
            return SandboxLost(f"sandbox {self.id} is stopped; start it again, or `restore` it with its sessions")
        leaving = "being stopped" if self._leaving == "killed" else "being deleted"
        doing = self._busy or (leaving if self._leaving and self.state == "running" else self.state)
        return SandboxError(f"sandbox {self.id} is {doing}: it takes commands only while it runs")


def _as_shell(status: int) -> int:
    return status if status >= 0 else 128 - status


def _exit_code(found: Mapping[str, Any]) -> int | None:
    """Of `podman inspect`; None where Podman heard of no end, or that of conmon only."""
    code = int(found["State"]["ExitCode"])
    return code if found["State"]["Status"] in ("exited", "stopped") and code >= 0 else None


def container_name(sandbox_id: str) -> str:
    """What Podman calls it."""
    return f"rockroll-{home.home_id()}-{sandbox_id}"


def spool_path(sandbox_id: str) -> Path:
    """The file of a box's log."""
    folder = home.node_dir() / "spool"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{sandbox_id}.log"


def environment_path(sandbox_id: str) -> Path:
    """The file of a box's changed variables."""
    return spool_path(sandbox_id).with_suffix(".env")


def folder_of(sandbox_id: str) -> Path:
    """A box's own folder: `s` is what it sees as INSIDE, `x` is the runtime's short-lived files."""
    return home.runtime_dir() / "b" / sandbox_id


def make_folder(sandbox_id: str) -> Path:
    """Makes it; the path of `s`, for the mount."""
    folder = folder_of(sandbox_id)
    (folder / "x").mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "s").mkdir(exist_ok=True)
    # The box's user passes through but lists nothing; each session's folder in it is that user's own.
    (folder / "s").chmod(0o711)
    return folder / "s"
