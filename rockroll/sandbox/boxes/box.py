"""One sandbox on this host, put together.

In: calls on it. Out: their replies, from a box that runs; SandboxLost or SandboxError without one. Leaves starts and
ends to life.py, what it is on the host to hull.py, its sessions to sessions.py, owners and times to ends.py.

    Box ──► Life ──► Sessions ──► Hull (container, init, cgroup; Writable: its files)      an arrow: asks
                └───────┴──────────┴──► Status: the words for what it is now; asks nobody
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec

from rockroll import home
from rockroll.errors import SandboxLost, SessionError
from rockroll.sandbox.boxes import grant, recycle
from rockroll.sandbox.boxes.calls import Calls
from rockroll.sandbox.boxes.hull import Hull
from rockroll.sandbox.boxes.life import Life
from rockroll.sandbox.boxes.sessions import Sessions
from rockroll.sandbox.boxes.status import Status
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container import cgroup
from rockroll.sandbox.container.oci_exec import Runtime
from rockroll.sandbox.container.podman import Podman
from rockroll.sandbox.container.spawner import Spawner
from rockroll.sandbox.exec import processes, terminal
from rockroll.sandbox.exec.commands import Commands
from rockroll.sandbox.exec.environment import Changes
from rockroll.sandbox.exec.execute import execute
from rockroll.sandbox.exec.feed import Tether
from rockroll.sandbox.net import egress
from rockroll.sandbox.net.egress import Egress
from rockroll.sandbox.net.endpoint import Endpoint
from rockroll.sandbox.net.resolve import Resolve
from rockroll.sandbox.wire import (
    Cause,
    Execute,
    Observation,
    Owner,
    ProcessInfo,
    Run,
    SandboxInfo,
    Start,
    State,
    Stats,
    Terminal,
    TerminalEnd,
)

CALLS_S = 5.0
"""A call whose process has been killed ends within milliseconds."""


class Box:
    """Who it is, its parts, and what is asked of it while it runs."""

    def __init__(
        self,
        *,
        id: str,
        name: str,
        config: SandboxConfig,
        owner: Owner,
        created: float,
        account: str = "detached",
        env: Mapping[str, str],
        podman: Podman,
        runtime: Runtime,
        spawner: Spawner,
        endpoint: Endpoint,
        resolve: Resolve | None = None,
        changed: Callable[[Status], None] = lambda _: None,
    ) -> None:
        """account: whom it is counted for. changed: called after its state or cause has changed for good."""
        self.id, self.name, self.config, self.created = id, name, config, created
        self.owner: Owner = owner
        self.account = account
        self.granted = grant.of(config)
        self.image: str | None = None
        """Of a box that was made for a warm pool: the id of the image that it stands on."""
        self.calls = Calls()
        """Whatever names the box: it is not idle until the end of that."""
        self.status = Status(id)
        self.hull = Hull(self.status, config, podman, runtime, spawner, lambda code: self.life.init_ended(code))
        self.sessions = Sessions(self.status, self.hull, created)
        self.commands = Commands(id, self._run_command, self.status.need_running)
        self.egress = Egress(config, resolve)
        self.life = Life(self.status, self.hull, self.sessions, self.commands, endpoint, self.egress, podman, changed)
        self.log_file = self.hull.log_file
        self._env = dict(env)
        self._podman = podman
        self._programs = Calls()
        """Those that have or may get a process in the box."""
        self._uses = 0
        """How often the box has been recycled."""

    def hand_out(self, name: str, config: SandboxConfig, owner: Owner, account: str, created: float) -> None:
        """A box that stood ready is somebody's from now on. config: as its own but for what Podman knows nothing of."""
        self.name, self.config, self.owner, self.account, self.created = name, config, owner, account, created
        self.calls.last = time.monotonic()

    @property
    def state(self) -> State:
        return self.status.state

    @property
    def cause(self) -> Cause | None:
        return self.status.cause

    @property
    def container(self) -> str:
        return self.hull.container

    @property
    def unenforced(self) -> list[str]:
        """The limits that this host does not hold it to."""
        return self.hull.unenforced

    @property
    def init(self) -> int:
        """Init's pid on the host. Raises SandboxLost when the box does not run."""
        if not self.status.has_init():
            raise self.status.not_running()
        return self.hull.init.pid

    @property
    def init_end(self) -> asyncio.Future[int | None]:
        """Done when the init that runs now has ended. Raises SandboxLost when the box does not run."""
        if not self.init or self.hull.init.process is None:
            raise self.status.not_running()
        return self.hull.init.process.ended

    # -- commands

    async def run(self, body: Run, label: str = "", tether: Tether | None = None) -> Observation:
        """One command in a session, which is made on first use."""
        with self.calls, self._programs:
            try:
                self.status.need_running()
                self.hull.share.refresh()
                session = self.sessions.get(body.session)
                done = await session.run(
                    body.command, timeout=body.timeout, max_output=body.max_output, label=label, tether=tether
                )
            except (SandboxLost, SessionError):
                await self._need_life()
                raise
            return done if done.outcome != "lost" else await self._with_cause(done)

    async def execute(self, body: Execute, tether: Tether | None = None) -> Observation:
        """One program without a shell."""
        with self.calls, self._programs:
            try:
                done = await self._execute(body, tether)
            except (SandboxLost, SessionError):
                await self._need_life()
                raise
            return done if done.outcome != "lost" else await self._with_cause(done)

    async def _execute(self, body: Execute, tether: Tether | None) -> Observation:
        self.status.need_running()
        self.hull.share.refresh()
        scope, use = self.hull.running_cgroup.scope(), self._uses
        try:
            done = await execute(self.hull, scope, body, tether)
            if use != self._uses and done.exit_code == 128 + signal.SIGKILL:
                return msgspec.structs.replace(done, outcome="killed", exit_code=None)
            return done
        finally:
            self.hull.give_back(scope)

    async def _need_life(self) -> None:
        """Raises what has become of the box where it has died under a call."""
        if self.hull.doomed():
            await self.life.death()
            raise self.status.not_running() from None

    async def _with_cause(self, done: Observation) -> Observation:
        """Of a call that the box has died under."""
        await self.life.death()
        return msgspec.structs.replace(done, cause=self.status.cause or self.status.asked)

    async def _run_command(self, body: Start, tether: Tether) -> Observation:
        common = {"id": body.id, "timeout": body.timeout, "max_output": body.max_output}
        if body.argv is not None:
            return await self.execute(Execute(argv=body.argv, env=body.env, cwd=body.cwd, **common), tether)
        run = Run(command=body.command or b"", session=body.session, **common)
        return await self.run(run, body.command_id, tether)

    async def terminal(self, body: Terminal) -> TerminalEnd:
        """A shell on a terminal of its own, in nobody's kill scope, until it ends. Cancelled: it is hung up."""
        self.status.need_running()
        use = self._uses
        found = None if body.session is None else self.sessions.state_of(body.session)
        place = self.hull.new_place("t")
        with self._programs:
            code = await terminal.run(self.hull.execer, place, self.hull.owner_ids, body, found)
        if self.hull.doomed():
            return TerminalEnd(exit_code=code, note=f"sandbox {self.name} has ended, and this shell with it")
        if use != self._uses:
            return TerminalEnd(exit_code=code, note=f"sandbox {self.name} was recycled, and this shell ended with it")
        return TerminalEnd(exit_code=code)

    # -- the box as a whole

    async def recycle(self, quiet: Callable[[], Awaitable[None]]) -> str | None:
        """Makes the box as it was before its first command; None, or the reason why that cannot be.

        quiet: ends what others do with its files. From before that call on, `need_rest` refuses them more of it.
        """
        async with self.life.alone:
            self.status.need_container()
            self.status.need_running()
            self.status.busy = "being recycled"
            try:
                return await self._recycle(quiet)
            finally:
                self.status.busy = ""

    async def _recycle(self, quiet: Callable[[], Awaitable[None]]) -> str | None:
        hull, group = self.hull, self.hull.running_cgroup
        if hull.baseline is None:
            return hull.not_recyclable
        self._uses += 1
        await quiet()
        await self.commands.clear()  # first: one that waits for its turn would else begin as a session ends
        await self.sessions.end_all()
        self.sessions.forget_all()
        await hull.execer.settled()
        if not await cgroup.kill(group.everything):
            return "a process outlived SIGKILL for 5 s"
        try:
            async with asyncio.timeout(CALLS_S):
                await self._programs.none()
        except TimeoutError:
            return f"a call did not end within {CALLS_S:g} s of its process"
        if hull.doomed():
            return "its init is dead"
        try:
            await asyncio.to_thread(recycle.renew, hull.init.pid, hull.baseline)
        except recycle.NotRecyclable as error:
            return str(error)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        if group.everything() or hull.doomed():
            return "a process was started while it was being recycled"
        self.egress.forget()
        hull.log_file.reset()
        hull.execer.environment = hull.environment.clear()
        return None

    async def copy_files(self, target: Path) -> None:
        """Copies what the box has written into an empty folder; a running box is held still meanwhile, and so are
        uploads into it."""
        async with self.life.alone:
            self.status.need_container()
            if self.status.state not in ("running", "stopped", "exited"):
                raise self.status.not_running()
            still = self.hull.frozen() if self.status.state == "running" else contextlib.nullcontext()
            await self.hull.writable.copy(self.hull.container, target, still)

    async def image_id(self) -> str:
        """The image that the box stands on, however its name has moved since."""
        if not self.hull.container:
            raise self.status.not_running()
        return str((await self._podman.inspect(self.hull.container))["Image"])

    # -- what runs in it, its environment

    def everything(self) -> list[int]:
        """The host's pids of every process but init. SandboxLost when the box does not run."""
        _ = self.init
        return self.hull.running_cgroup.everything()

    def processes(self) -> list[ProcessInfo]:
        """Every process, init first. Blocks."""
        everything = self.everything()  # first: what moves between two groups meanwhile is in one of them all the same
        members = {session.name: session.scope.everything() for session in self.sessions.open.values()}
        return processes.listed(self.init, everything, members)

    def environment(self) -> dict[str, str]:
        """What a program gets that starts now."""
        return dict(self.hull.execer.environment)

    def change_environment(self, changes: Changes) -> dict[str, str]:
        """For programs and shells that start from now on, and for open sessions from their next command on."""
        self.status.need_running()
        self.hull.execer.environment = self.hull.environment.change(changes)
        self.sessions.change_env(changes)
        return self.environment()

    def stats(self) -> Stats:
        """As Hull.stats. SandboxLost when the box does not run."""
        _ = self.init
        return self.hull.stats()

    def info(self) -> SandboxInfo:
        return SandboxInfo(
            id=self.id,
            name=self.name,
            state=self.status.state,
            image=self.config.image_name,
            node=home.node_name(),
            created=self.created,
            owner=self.owner,
            labels=dict(self.config.labels),
            unenforced=list(self.unenforced),
            env={**egress.environment(self.config), **self.config.env, **self._env},
            cause=self.status.cause,
            ended=self.status.ended,
        )
