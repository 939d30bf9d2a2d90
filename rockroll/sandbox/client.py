"""`Sandbox`: a sealed box of one's own, as a Python object.

In: a SandboxConfig, commands, bytes. Out: Observations, bytes, and errors of rockroll/errors.py. Here is its life; the
rest of it is in client_link.py (the calls), client_commands.py, client_files.py and client_inside.py. Leaves the work
to the node process (host.py), which `connect_to` starts on demand; all of this only carries.

    Sandbox(config) ── start ──► running ── stop ──► stopped ── start ──► running
                                    ├── died ──► exited ── restore ──► running
                                    └──────── delete, or the end of `async with` ────────► gone
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, Self, TypeVar

from rockroll.errors import ImageMissing, PeerLost, RockrollError, SandboxLost, SandboxNotFound, UsageError
from rockroll.sandbox import where, wire
from rockroll.sandbox.client_commands import Commands
from rockroll.sandbox.client_files import Files
from rockroll.sandbox.client_home import delete_snapshot as delete_snapshot
from rockroll.sandbox.client_home import list_sandboxes as list_sandboxes
from rockroll.sandbox.client_home import snapshots as snapshots
from rockroll.sandbox.client_inside import Inside
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.node_client import connect_to
from rockroll.sandbox.wire import Owner, Recycled, Restored, SandboxInfo, SnapshotInfo

T = TypeVar("T")
DELETES_AT_ONCE = 64
"""Calls under way. How many boxes go at once is the node's to say."""
_log = logging.getLogger(__name__)


class Sandbox(Commands, Inside, Files):
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
        place = where.place(base_url, token, cluster)
        if isinstance(place, where.Server) and not outlives_node:
            raise UsageError("outlives_node=False: over HTTP nothing can keep that; leave it out, or base_url")
        super().__init__(place, owner, outlives_node=outlives_node)
        self.config = config or SandboxConfig()

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

    def __repr__(self) -> str:
        return f"Sandbox({self._info.id}, {self._info.state})" if self._info else "Sandbox(not started)"

    async def start(self) -> Self:
        """Makes the box, or starts it again after `stop`. ImageMissing, LimitNotEnforced, HostError."""
        if self._info is None:
            await self._connected()
            await self._make(lambda body: self._call("sandbox.create", body, SandboxInfo))
        else:
            self._info = await self._call("sandbox.start", self._ref, SandboxInfo)
        return self

    async def start_when_there_is_room(self) -> Self:
        """As `start`, for a box of a cluster that has none yet: where no node has room, it waits for one that has."""
        node = await self._connected()
        if self._info is not None or not isinstance(self._place, where.Hub):
            return await self.start()
        try:
            await self._make(lambda body: node.create(body, wait=True))  # type: ignore[union-attr]
        except PeerLost as error:
            raise SandboxLost(f"the node died while a sandbox was made: {error}", cause="node_lost") from error
        return self

    async def _make(self, create: Callable[[wire.Create], Awaitable[SandboxInfo]]) -> None:
        async with self._undone() as key:
            body = wire.Create(config=dataclasses.asdict(self.config), owner=self.owner, key=key)
            self._info = await self._made(lambda: create(body))
            await self._narrow()

    @contextlib.asynccontextmanager
    async def _undone(self) -> AsyncIterator[str]:
        """A key to make a box with. Where that ends without its reply, cancelled or with the node, the box may be there
        or not: none is left then."""
        key = secrets.token_hex(16)
        try:
            yield key
        except (SandboxLost, PeerLost, asyncio.CancelledError):
            await finish(self._delete_keyed(key))
            raise

    async def _delete_keyed(self, key: str) -> None:
        try:
            await (await connect_to(self._place)).call("sandbox.delete", wire.Ref(id=key), type=SandboxInfo)
        except SandboxNotFound:
            pass
        except RockrollError as error:
            _log.warning("a sandbox whose making was broken off may be left over: %s", error)

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
        other._place, other._node = self._place, await self._connected()
        async with self._undone() as key:
            body = wire.Fork(id=self.id, name=name, owner=other.owner, key=key)
            other._info = await self._call_all("sandbox.fork", body, SandboxInfo)
            await other._narrow()
        return other

    async def refresh(self) -> SandboxInfo:
        """Asks the node for the state of this box."""
        self._info = await self._call("sandbox.get", self._ref, SandboxInfo)
        return self._info

    async def __aenter__(self) -> Self:
        return self if self._attached else await self.start()

    async def __aexit__(self, *_: object) -> None:
        if not self._attached:
            await finish(self.delete())


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
