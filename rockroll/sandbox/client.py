"""`Sandbox`: a sealed box of one's own, as a Python object.

In: a SandboxConfig, commands, bytes. Out: Observations, bytes, and errors of rockroll/errors.py. Leaves the work to the
node process (host.py), which `connect_node` starts on demand, and files to client_files.py; this file only carries.

    Sandbox(config) ── start ──► running ── stop ──► stopped ── start ──► running
                                    ├── died ──► exited ── restore ──► running
                                    └──────── delete, or the end of `async with` ────────► gone
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from rockroll.errors import (
    ImageMissing,
    PeerLost,
    RockrollError,
    SandboxError,
    SandboxLost,
    SandboxNotFound,
    UsageError,
)
from rockroll.sandbox import where, wire
from rockroll.sandbox.client_files import Files
from rockroll.sandbox.command import Command
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.forward import Forward
from rockroll.sandbox.node_client import connect_to
from rockroll.sandbox.wire import (
    DEFAULT_SESSION,
    MAX_OUTPUT,
    CommandInfo,
    NetworkInfo,
    Observation,
    Owner,
    ProcessInfo,
    Recycled,
    Restored,
    SandboxInfo,
    SnapshotInfo,
    State,
    Stats,
)

if TYPE_CHECKING:
    from rockroll.sandbox.node_client import Node

T = TypeVar("T")
DELETES_AT_ONCE = 64
"""Calls under way. How many boxes go at once is the node's to say."""


class Sandbox(Files):
    """One sandbox. Every method that names a box that is gone raises SandboxNotFound, which says how it ended; a box
    that dies meanwhile, or whose node dies, SandboxLost, with the cause in `fields`. After the death of the node alone
    the next call works again: the box lives on, and its sessions come back with their state.

    config: limits, image, name, labels; the defaults of SandboxConfig where None.
    owner: "connection" boxes are deleted when this process ends, however it ends; "detached" ones live until `delete`
    or their TTL.
    outlives_node: False: once its node has died, every call but `delete` raises SandboxLost. For who must not go on
    with a box that has lost its processes.
    base_url, token: of a server (`rockroll serve`) that holds the box; None: $ROCKROLL_BASE_URL and $ROCKROLL_TOKEN,
    and without them this host's own node. "" is this host's own node whatever they say.
    cluster: the file that a hub has written (docs/cluster.md); None: $ROCKROLL_CLUSTER.
    """

    def __init__(
        self,
        config: SandboxConfig | None = None,
        *,
        owner: Owner = "connection",
        outlives_node: bool = True,
        base_url: str | None = None,
        token: str | None = None,
        cluster: where.Cluster | None = None,
    ) -> None:
        self._outlives_node = outlives_node
        self._place = where.place(base_url, token, cluster)
        if isinstance(self._place, where.Server) and not outlives_node:
            raise UsageError("outlives_node=False: over HTTP nothing can keep that; leave it out, or base_url")
        self.config = config or SandboxConfig()
        self.owner: Owner = owner
        self._info: SandboxInfo | None = None
        self._node: Node | None = None
        self._attached = False

    @classmethod
    async def attach(
        cls,
        sandbox_id: str,
        *,
        base_url: str | None = None,
        token: str | None = None,
        cluster: where.Cluster | None = None,
    ) -> Self:
        """The sandbox with that id, unique id prefix or name, made by whomever. `async with` does not delete it."""
        sandbox = cls(base_url=base_url, token=token, cluster=cluster)
        sandbox._info = await sandbox._call("sandbox.get", wire.Ref(id=sandbox_id), SandboxInfo)
        sandbox.owner = sandbox._info.owner
        sandbox._attached = True
        await sandbox._narrow()
        return sandbox

    @property
    def info(self) -> SandboxInfo:
        """What the node said last about this box; `refresh` asks again. SandboxError before the first `start`."""
        if self._info is None:
            raise SandboxError(
                "this sandbox was not started: use `async with Sandbox(...)`, or await its start() first"
            )
        return self._info

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def connected(self) -> bool:
        """Whether the link to the node still stands that was last used for this box."""
        return self._node is not None and self._node.closed is None

    def __repr__(self) -> str:
        return f"Sandbox({self._info.id}, {self._info.state})" if self._info else "Sandbox(not started)"

    # ---- life ------------------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Makes the box, or starts it again after `stop`. ImageMissing, LimitNotEnforced, HostError."""
        if self._info is None:
            body = wire.Create(config=dataclasses.asdict(self.config), owner=self.owner)
            self._info = await self._made(lambda: self._call("sandbox.create", body, SandboxInfo))
            await self._narrow()
        else:
            self._info = await self._call("sandbox.start", self._ref, SandboxInfo)
        return self

    async def start_when_there_is_room(self) -> Self:
        """As `start`, for a box of a cluster that has none yet: where no node has room, it waits for one that has."""
        node = await self._connected()
        if self._info is not None or not isinstance(self._place, where.Hub):
            return await self.start()
        body = wire.Create(config=dataclasses.asdict(self.config), owner=self.owner)
        try:
            self._info = await self._made(lambda: node.create(body, wait=True))  # type: ignore[union-attr]
            await self._narrow()
        except PeerLost as error:
            raise SandboxLost(f"the node died while a sandbox was made: {error}", cause="node_lost") from error
        return self

    async def _made(self, create: Callable[[], Awaitable[SandboxInfo]]) -> SandboxInfo:
        """In a cluster that lacks its image: made once more when a node has this host's."""
        try:
            return await create()
        except ImageMissing:
            if not isinstance(self._place, where.Hub):
                raise
            from rockroll.sandbox.give import give

            if not await give(await connect_to(self._place), self.config.image_name):  # type: ignore[arg-type]
                raise
        return await create()

    async def stop(self) -> None:
        """Ends every process in the box; its files stay, and `start` brings it up again."""
        self._info = await self._call("sandbox.stop", self._ref, SandboxInfo)

    async def restore(self) -> Restored:
        """Brings a box that died or was stopped back, with its files; its sessions come back at their next command with
        their folder, variables, functions, aliases and options. The reply says what is lost: processes, and files in
        memory. A box that runs is left as it is. SandboxNotFound where it was deleted: then nothing is left of it.
        """
        return await self._restore(restart=False)

    async def restart(self) -> Restored:
        """Stops the box if it runs, then as `restore`."""
        return await self._restore(restart=True)

    async def _restore(self, *, restart: bool) -> Restored:
        restored = await self._call("sandbox.restore", wire.Restore(id=self.id, restart=restart), Restored)
        self._info = restored.info
        return restored

    async def delete(self) -> None:
        """Removes the box and all that is in it. A box that is gone already is no error."""
        if self._info is None:
            return
        self._outlives_node = True
        try:
            await self._call("sandbox.delete", self._ref, SandboxInfo)
        except SandboxNotFound:
            pass
        except SandboxLost:
            # The node died with the box in its hands; the next one has it now, or has swept it.
            try:
                await self._call("sandbox.delete", self._ref, SandboxInfo)
            except SandboxNotFound:
                pass
            except SandboxLost:
                if not isinstance(self._place, where.Hub):
                    raise
                # A node that is not heard: it goes when that is, if it still has it.
                (await connect_to(self._place)).delete_later(self._info.node, self.id)  # type: ignore[union-attr]

    async def recycle(self) -> Recycled:
        """Makes the box as good as new: every process but init killed, every written file removed, both verified.

        Not ok: the box could not be made new and was deleted. Sessions are gone either way.
        """
        return await self._call("sandbox.recycle", self._ref, Recycled)

    async def snapshot(self, name: str) -> SnapshotInfo:
        """Keeps what the box has written so far under `name`, for `SandboxConfig(snapshot=name)`; the box goes on.

        Files only: no processes, no sessions, nothing of /dev/shm and mounts. A running box is held still meanwhile.
        UsageError where a snapshot has that name.
        """
        return await self._call_all("sandbox.snapshot", wire.Snapshot(id=self.id, name=name), SnapshotInfo)

    async def fork(self, *, name: str | None = None, owner: Owner | None = None) -> Self:
        """Another box of the same config that begins with a copy of this one's files, as `snapshot` sees them; neither
        sees what the other writes later. Use it with `async with`, or `delete` it. In a cluster it is on this one's
        node, or on another where that has no room.

        owner: as this one's where None.
        """
        other = type(self)(dataclasses.replace(self.config, name=name, snapshot=None), owner=owner or self.owner)
        body = wire.Fork(id=self.id, name=name, owner=other.owner)
        other._info = await self._call_all("sandbox.fork", body, SandboxInfo)
        other._node, other._place = self._node, self._place
        await other._narrow()
        return other

    async def refresh(self) -> SandboxInfo:
        """Asks the node for the state of this box."""
        self._info = await self._call("sandbox.get", self._ref, SandboxInfo)
        return self._info

    async def stats(self) -> Stats:
        """What the box has used: CPU seconds, bytes of memory and disk, processes."""
        return await self._call("sandbox.stats", self._ref, Stats)

    async def processes(self) -> list[ProcessInfo]:
        """Every process in the box, init first, numbered as the box does: owner, command line, state, use, session."""
        return await self._call("sandbox.processes", self._ref, list[ProcessInfo])

    async def signal(self, process: int | ProcessInfo, name: str = "TERM") -> None:
        """Sends a signal ("TERM", "SIGKILL", "10") to one process of the box.

        process: a row of `processes()`, then that process or none gets it; or a pid as the box numbers it, then
        whoever has it now. SandboxError where it is gone, UsageError for init.
        """
        pid, birth = (process, 0) if isinstance(process, int) else (process.pid, process.birth)
        await self._call("sandbox.signal", wire.Signal(id=self.id, pid=pid, signal=name, birth=birth))

    async def env(self) -> dict[str, str]:
        """The environment of a program that would start in the box now."""
        return await self._call("sandbox.env", self._ref, dict[str, str])

    async def set_env(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        """Sets variables, or removes those whose value is None; returns the environment after that.

        For programs and sessions that start later, also after `stop` and `start`, and for open sessions from their next
        command on (as by `export`); a command that is running keeps what it has. `recycle` forgets all of it.
        """
        return await self._call("sandbox.set_env", wire.SetEnv(id=self.id, changes=dict(changes)), dict[str, str])

    async def network(self) -> NetworkInfo:
        """Whom the box may reach, and what it has asked its proxy for: counts, and the last connections."""
        return await self._call("sandbox.network", self._ref, NetworkInfo)

    def forward(
        self,
        port: int,
        *,
        local: int = 0,
        address: str = "127.0.0.1",
        on_error: Callable[[RockrollError], None] | None = None,
    ) -> Forward:
        """`async with sandbox.forward(8080) as place:` connections to `place` on this host (place.host, place.port,
        f"http://{place}") go to that port of the box's own loopback, whatever its network.

        local: the port on this host; 0: any free one. on_error: told of each connection that found nothing listening,
        or broke off; it is logged otherwise. UsageError where the place is taken.
        """
        return Forward(self, port, local=local, address=address, on_error=on_error)

    async def __aenter__(self) -> Self:
        return self if self._attached else await self.start()

    async def __aexit__(self, *_: object) -> None:
        if not self._attached:
            await finish(self.delete())

    # ---- commands --------------------------------------------------------------------------------------------

    async def arun(
        self,
        command: str | bytes,
        *,
        session: str = DEFAULT_SESSION,
        timeout: float | None = None,
        max_output: int = MAX_OUTPUT,
        command_id: str | None = None,
    ) -> Observation:
        """Runs a command in a persistent Bash session, which is opened on first use: variables, functions and the
        working directory stay for the next command.

        timeout: seconds; then everything that the command started is killed and the outcome is "timeout"; the session
        stays usable. max_output: bytes kept of each stream. Cancelling the call kills the command.
        command_id: a name for it; then it goes on should this process die, and the same call, made again by whomever,
        finds it instead of running it twice.
        """
        if command_id is not None:
            begun = await self.start_command(
                command, session=session, timeout=timeout, max_output=max_output, command_id=command_id
            )
            return await begun._wait_or_cancel()
        code = command.encode("utf-8", "surrogateescape") if isinstance(command, str) else command
        body = wire.Run(id=self.id, command=code, session=session, timeout=timeout, max_output=max_output)
        return await self._call("session.run", body, Observation)

    async def start_command(
        self,
        command: str | bytes | Sequence[str],
        *,
        session: str = DEFAULT_SESSION,
        stdin: bool = False,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        max_output: int = MAX_OUTPUT,
        command_id: str | None = None,
    ) -> Command:
        """Begins a command and returns: a string is a line for the session, a list is a program without a shell.

        stdin: whether `Command.send_input` will be used; else it reads /dev/null. env, cwd: of a program (a session has
        its own). command_id: a name for it, made up if left out; one that is known finds that command, and is refused
        with UsageError where it stands for another one. The command goes on if this process dies.
        """
        line = isinstance(command, str | bytes)
        if line and (env or cwd):
            raise UsageError("env and cwd go with a program, given as a list; a session has its own (create_session)")
        code = command.encode("utf-8", "surrogateescape") if isinstance(command, str) else command
        body = wire.Start(
            id=self.id,
            command_id=command_id or secrets.token_hex(8),
            command=code if isinstance(code, bytes) else None,
            argv=None if isinstance(code, bytes) else list(code),
            session=session,
            env=dict(env or {}),
            cwd=cwd,
            stdin=stdin,
            timeout=timeout,
            max_output=max_output,
        )
        await self._call("command.start", body)
        return Command(self, body.command_id)

    def command(self, command_id: str) -> Command:
        """The command of that id, started by whomever."""
        return Command(self, command_id)

    async def commands(self) -> list[CommandInfo]:
        """Those under way and the last 256 that ended, of `start_command` and of `arun` with a command_id."""
        return await self._call("command.list", self._ref, list[CommandInfo])

    async def execute(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes = b"",
        max_output: int = MAX_OUTPUT,
    ) -> Observation:
        """Runs one program without a shell. Its exit code comes from a wait outside the box, where nothing fakes it."""
        if isinstance(argv, str | bytes) or not argv:
            raise UsageError(f"execute takes the program and its arguments as a list, as in ['ls', '/']; got {argv!r}")
        body = wire.Execute(
            id=self.id,
            argv=list(argv),
            timeout=timeout,
            env=dict(env or {}),
            cwd=cwd,
            stdin=stdin,
            max_output=max_output,
        )
        return await self._call("execute", body, Observation)

    async def create_session(
        self, session: str = DEFAULT_SESSION, *, env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> None:
        """Opens a Bash session with these variables in this folder. SessionError where one has that name."""
        await self._call("session.create", wire.SessionSpec(id=self.id, session=session, env=dict(env or {}), cwd=cwd))

    async def close_session(self, session: str = DEFAULT_SESSION) -> None:
        """Ends a session and every process in it."""
        await self._call("session.close", wire.SessionSpec(id=self.id, session=session))

    async def logs(self, *, offset: int = 0, follow: bool = False) -> AsyncIterator[bytes]:
        """What the commands of this box printed, from byte `offset` on; with `follow`, until the box is gone."""
        node = await self._connected()
        body = wire.Logs(id=self.id, offset=offset, follow=follow)
        try:
            async for chunk in node.stream("logs", body, type=wire.LogChunk):
                yield chunk.data
        except PeerLost as error:
            raise SandboxLost(f"the node died while the log was read: {error}", cause="node_lost") from error

    # ---- calls -----------------------------------------------------------------------------------------------

    async def ask(self, method: str, body: Any) -> Any:
        """A method of the node about this box that is not the sandbox room's own (placement adds `model.route`)."""
        return await self._call(method, body, cast(Any, Any))

    @property
    def _ref(self) -> wire.Ref:
        return wire.Ref(id=self.id)

    async def _connected(self) -> Node:
        if self._node is None:
            self._node = await connect_to(self._place)
        elif self._node.closed is not None:
            if not self._outlives_node:
                raise SandboxLost("the node that held this sandbox died; take another sandbox", cause="node_lost")
            try:
                self._node = await connect_to(self._place, self._info.node if self._info else None)
            except PeerLost as error:
                raise SandboxLost(f"sandbox {self.id} is out of reach: {error}", cause="node_lost") from error
            await self._claim(self._node)
        return self._node

    async def _narrow(self) -> None:
        """From now on its node is asked, and no longer the whole cluster."""
        if self._info is not None and isinstance(self._place, where.Hub):
            try:
                self._node = await connect_to(self._place, self._info.node)
            except PeerLost as error:
                raise SandboxLost(f"sandbox {self.id} is out of reach: {error}", cause="node_lost") from error

    async def _claim(self, node: Node) -> None:
        """A new node has taken this box over: it lives as long as this connection, as it did on the last one's."""
        if self.owner == "connection" and self._info is not None and not self._attached:
            try:
                await node.call("sandbox.claim", self._ref)
            except SandboxNotFound:
                return  # the call that comes next says so

    async def _call(
        self, method: str, body: Any, type: type[T] = object, *, parts: AsyncIterator[Any] | None = None
    ) -> T:
        node = await self._connected()
        try:
            return await node.call(method, body, type=type, parts=parts)
        except PeerLost as error:
            raise SandboxLost(f"the node died while {method} was under way: {error}", cause="node_lost") from error

    async def _call_all(self, method: str, body: Any, type: type[T]) -> T:
        """As _call, of the whole cluster where the box is in one: more than its node has a part in it."""
        node = await self._connected()
        if isinstance(self._place, where.Hub):
            node = await connect_to(self._place)
        try:
            return await node.call(method, body, type=type)
        except PeerLost as error:
            raise SandboxLost(f"a node died while {method} was under way: {error}", cause="node_lost") from error


async def list_sandboxes(
    *,
    labels: Mapping[str, str] | None = None,
    state: State | None = None,
    all: bool = False,
    base_url: str | None = None,
    token: str | None = None,
    cluster: where.Cluster | None = None,
) -> list[SandboxInfo]:
    """The sandboxes of this home, of that server or of that cluster, that carry every label given and are in that
    state; with `all` also those that are gone (the last 1,000), each with the cause and time of its end."""
    node = await connect_to(where.place(base_url, token, cluster))
    body = wire.List(all=all, labels=dict(labels or {}), state=state)
    return await node.call("sandbox.list", body, type=list[SandboxInfo])


async def snapshots(*, base_url: str | None = None, token: str | None = None) -> list[SnapshotInfo]:
    """Every snapshot of this home, or of that server, the oldest first."""
    node = await connect_to(where.place(base_url, token))
    return await node.call("snapshot.list", wire.Empty(), type=list[SnapshotInfo])


async def delete_snapshot(name: str, *, base_url: str | None = None, token: str | None = None) -> SnapshotInfo:
    """Removes a snapshot; boxes that were started from it keep their files. SnapshotNotFound."""
    node = await connect_to(where.place(base_url, token))
    return await node.call("snapshot.delete", wire.SnapshotRef(name=name), type=SnapshotInfo)


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work` to its end even where the caller is cancelled meanwhile; then the cancellation goes on."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001 - raised below, by the task itself
            break
    if cancelled is None:
        return task.result()
    if not task.cancelled() and (failed := task.exception()) is not None:
        raise cancelled from failed
    raise cancelled


async def delete_all(sandboxes: Iterable[Sandbox]) -> None:
    """Deletes them side by side; the first error is raised after all were tried."""
    slots = asyncio.Semaphore(DELETES_AT_ONCE)

    async def one(sandbox: Sandbox) -> None:
        async with slots:
            await sandbox.delete()

    results = await asyncio.gather(*(one(sandbox) for sandbox in sandboxes), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
