"""The starts and ends of one box.

In: a container, calls to start, stop, restore or remove it, and its init's end, which comes when it comes. Out: its
state, the cause of its death, and everything else of the box told of it. Leaves the table of states to lifecycle.py,
what a box consists of to hull.py, and who may ask for its end to ends.py.

    up, adopt ──► running ──┬─ stop ──────────────────────────► stopped ──┐
                            └─ init ends ──► bury (the cause) ──► exited ─┴─ start, restore ──► running
    remove: at any time, after what is under way. leave: the box goes on without this node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from rockroll.errors import RockrollError, SandboxLost, SandboxNotFound
from rockroll.sandbox.boxes.hull import Hull, exit_code
from rockroll.sandbox.boxes.init import CONMON_S
from rockroll.sandbox.boxes.lifecycle import Facts, after, cause_of
from rockroll.sandbox.boxes.names import container_name
from rockroll.sandbox.boxes.sessions import Sessions
from rockroll.sandbox.boxes.snapshot import Fill
from rockroll.sandbox.boxes.status import Status
from rockroll.sandbox.container.podman import Podman, leave_exit
from rockroll.sandbox.exec.commands import Commands
from rockroll.sandbox.net.egress import Egress
from rockroll.sandbox.net.endpoint import Endpoint
from rockroll.sandbox.wire import Cause, State

INIT_S = 5.0
"""The kernel tells of init's end well within this after Podman has removed its container."""
_log = logging.getLogger(__name__)


class Life:
    """See the module's drawing."""

    def __init__(
        self,
        status: Status,
        hull: Hull,
        sessions: Sessions,
        commands: Commands,
        endpoint: Endpoint,
        egress: Egress,
        podman: Podman,
        changed: Callable[[Status], None],
    ) -> None:
        """changed: called after the state or the cause has changed for good."""
        self._status, self._hull, self._sessions, self._commands = status, hull, sessions, commands
        self._endpoint, self._egress, self._podman, self._changed = endpoint, egress, podman, changed
        self.alone = asyncio.Lock()
        """Held by what changes the box as a whole: Podman does not bear two of them on one container."""
        self._starts = 0
        self._loose = False
        """Whether an init may live that nobody watches: a start has failed."""
        self._closing: asyncio.Task[None] | None = None
        self._turns: set[asyncio.Task[None]] = set()
        """Stops and starts under way: they go on to their end when their callers do not."""

    # -- starts

    @contextlib.asynccontextmanager
    async def being_made(self) -> AsyncIterator[None]:
        """A removal that comes meanwhile waits: it would find nothing of what Podman is just making."""
        async with self.alone:
            self._status.need_container()
            yield

    async def up(self, fill: Fill | None = None) -> None:
        """Starts the container and makes it ready: limits read back, endpoint open, baseline taken.

        fill: puts files into its writable layer before the first start.
        Raises HostError, SandboxLost; the caller removes the box then.
        """
        self._status.leaving = None
        await self._hull.writable.prepare(self._hull.container, fill)
        await self._hull.start()
        self._starts += 1
        await self._attach(fresh=self._starts == 1)

    async def _attach(self, *, fresh: bool) -> None:
        try:
            graph = await self._hull.look(fresh=fresh)
            await self._endpoint.open(self._status.id, self._hull.init.pid)
            self._egress.open(self._hull.init.pid)
            await self._hull.remember(graph, fresh=fresh)
        except OSError as error:
            if not self._hull.doomed():
                raise
            # Deleted or killed meanwhile: what is read under /proc goes with init, at any of the reads.
            raise SandboxLost("the sandbox ended while it was being started") from error
        if self._status.state == "starting":
            self._status.move("started")

    async def adopt(self, container: str, state: State, cause: Cause | None, ended: float | None) -> None:
        """A box that an earlier node left. Where its init lives, what that node's sessions ran is killed and they come
        back at their next command; else it is `stopped` or `exited`, for a restore; `exited` too where it could not be
        taken over. state, cause, ended: as that node knew them. Raises SandboxNotFound where Podman knows it no more.
        """
        self._hull.container = container
        self._starts += 1
        self._hull.sweep()
        self._sessions.load()
        try:
            await self._take_over(state, cause, ended)
        except SandboxNotFound:
            raise
        except (RockrollError, OSError) as error:
            _log.warning("sandbox %s of an earlier node could not be taken over: %s", self._status.id, error)
            await self._fall(cause or "runtime_crash", ended)

    async def _take_over(self, state: State, cause: Cause | None, ended: float | None) -> None:
        status = self._status
        found = await self._podman.inspect(self._hull.container)
        if self._hull.is_mine(int(found["State"]["Pid"])):
            await self._attach(fresh=False)
            await self._hull.kill_all()
        elif state == "stopped":
            status.state = state
            leave_exit(found, None)
        else:
            oom = bool(found["State"].get("OOMKilled"))
            status.state, status.ended = "exited", ended or time.time()
            status.cause = cause or cause_of(Facts(code=exit_code(found), oom=oom, watched=False))
            leave_exit(found, None)
        self._changed(status)

    async def start(self, *, sessions: bool = False) -> None:
        """Again after stop or death; the endpoint is bound anew before any command runs.

        sessions: each comes back with its state at its next command; else it is new then, and says so.
        """
        await self._whole(self._start(sessions))

    async def _start(self, sessions: bool) -> None:
        status = self._status
        async with self.alone:
            status.need_container()
            if status.state == "running":
                return
            cause, ended, starting = status.cause, status.ended, after(status.state, "start")
            await self._end_init()
            status.state = starting
            try:
                self._sessions.come_back(whole=sessions)
                await self.up()
            except BaseException:
                await self._fall(cause or "runtime_crash", ended)
                raise
            status.cause = status.ended = None
            self._changed(status)

    async def restore(self, *, restart: bool = False) -> tuple[Cause | None, list[str], list[str]]:
        """Brings a dead or stopped box back with its files and sessions: how it had ended, the sessions that come back,
        what is lost. A box that runs is left alone, or stopped first with `restart`.
        """
        status, hull = self._status, self._hull
        lost: list[str] = []
        if restart and status.has_init():
            lost = [f"{len(hull.running_cgroup.everything())} processes"]
            await self.stop()
        if status.state == "running" and not hull.doomed():
            return None, sorted(self._sessions.past), []
        await self.death()
        cause, memory = status.cause, hull.memory
        await self.start(sessions=True)
        past = self._sessions.past
        if emptied := [point for point, id in hull.memory.items() if not id or memory.get(point) != id]:
            lost.append(f"files in memory: {', '.join(emptied)}")
        torn = sorted(name for name, session in past.items() if not session.whole)
        lost += [f"the state of session {name!r}" for name in torn]
        lost = lost if restart and lost else ["every process that ran, background jobs too", *lost]
        return cause, sorted(past), lost

    async def _whole(self, work: Coroutine[Any, Any, None]) -> None:
        """In a task of the box's own: half a start would be a box that nobody knows."""
        task = asyncio.get_running_loop().create_task(work)
        self._turns.add(task)
        task.add_done_callback(self._turns.discard)
        await asyncio.shield(task)

    # -- ends

    def init_ended(self, code: asyncio.Future[int | None]) -> None:
        """Whoever ended it. code: its wait status."""
        self._status.move("stop" if self._status.leaving == "killed" else "died")
        self._endpoint.gone(self._status.id)
        self._egress.gone()
        # The counter is read now: its cgroup goes with the container.
        bury = self._bury(code.result(), self._hull.oom_killed())
        self._closing = asyncio.get_running_loop().create_task(bury)

    async def _bury(self, code: int | None, oom: bool) -> None:
        """Ends the sessions of a box whose init has died, and finds the cause."""
        status, ended = self._status, time.time()
        await self._sessions.end_all()
        if status.asked:
            code = None
        else:
            code = await self._hull.recorded_code(None if code is None else _as_shell(code))
        if status.state == "exited":
            status.cause, status.ended = cause_of(Facts(asked=status.asked, code=code, oom=oom)), ended
            self._changed(status)

    async def death(self) -> None:
        """Returns when a box that is dying is dead and its cause known."""
        await self._hull.init.end(CONMON_S)
        if self._closing:
            await asyncio.shield(self._closing)

    async def stop(self) -> None:
        """Ends everything in the box; its files stay. Where Podman cannot, it runs on as it was."""
        await self._whole(self._stop())

    async def _stop(self) -> None:
        status = self._status
        async with self.alone:
            status.need_container()
            if status.state == "stopped":
                return
            stopped = after(status.state, "stop")
            status.leaving = "killed"
            try:
                await self._podman.stop(self._hull.container)
            except BaseException:
                if status.state != "stopped":  # else it did what was asked, only without an answer
                    status.leaving = None
                    raise
            await self._end_init()
            status.state, status.cause, status.ended = stopped, None, None
            self._changed(status)

    async def _fall(self, cause: Cause, ended: float | None) -> None:
        """The box could not be brought up, or not be taken over: `exited`, whatever of it runs."""
        status = self._status
        status.state, self._loose = "exited", True
        try:
            await self._end_init()
        except (RockrollError, OSError) as error:
            _log.warning("sandbox %s: what is left of it ends at the next start: %s", status.id, error)
        status.state, status.cause, status.ended = "exited", cause, ended or time.time()
        self._changed(status)

    async def _end_init(self) -> None:
        """Init is dead, and so is every session. Raises HostError, SandboxNotFound where Podman must be asked."""
        init = self._hull.init
        if self._loose and not init.lives():
            found = await self._podman.inspect(self._hull.container)
            if self._hull.is_mine(int(found["State"]["Pid"])):
                with contextlib.suppress(SandboxLost):
                    init.watch(int(found["State"]["Pid"]), int(found["State"].get("ConmonPid") or 0))
        await init.kill()
        self._loose = False
        if self._closing:
            await self._closing

    async def remove(self, cause: Cause = "deleted") -> None:
        """Deletes the container and every trace of it on this host. Never fails for what is gone already; where it
        fails (HostError) the box is there still, and can be removed again.

        cause: why, unless it has died of something before.
        """
        status, hull = self._status, self._hull
        async with self.alone:
            if status.removed:
                return
            status.leaving, status.asked = "lost", cause
            try:
                await self._podman.remove(hull.container or container_name(status.id))
                await hull.writable.remove()
            except BaseException:
                status.leaving = status.asked = None
                raise
            await hull.init.end(INIT_S)
            if self._closing:
                await self._closing
            await self._sessions.end_all()
            await self._commands.clear()
            hull.forget()
            self._endpoint.gone(status.id)
            await self._egress.close()
            hull.remove_traces()
            self._sessions.saved.clear()
            status.removed = True
            status.move("removed")
            status.cause, status.ended = status.cause or cause, status.ended or time.time()

    async def leave(self) -> None:
        """The node ends and the box goes on: its sessions end, init and files stay for the next node."""
        async with self.alone:
            if self._closing:
                await self._closing
            await self._sessions.end_all()
            await self._commands.close()
            await self._egress.close()
            self._hull.forget()
            if self._hull.init.conmon:
                self._hull.init.conmon.forget()
            self._hull.log_file.close(remove=False)


def _as_shell(status: int) -> int:
    return status if status >= 0 else 128 - status
