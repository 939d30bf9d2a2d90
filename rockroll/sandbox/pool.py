"""Warm sandboxes: a lease gives one that runs already, and its return makes it new again in the background.

In: a SandboxConfig and a size. Out: `async with pool.lease() as sandbox`. Leaves what is done with a box, and how many
at a time, to the caller: who asks for more than `size` boxes waits for one to come back.

    (nothing) ── start ──► starting ──► warm ── lease ──► leased ── return ──► recycling ──► warm
         ▲                    │ failed: the oldest waiter gets the error            │ not ok, or lost: deleted
         └────────────────────┴─────────────────────────────────────────────────────┘   then another is started
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self

from rockroll.errors import NoRoom, RockrollError, SandboxError, SandboxLost
from rockroll.sandbox.client import Sandbox, delete_all, finish
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.node_client import connect_to
from rockroll.sandbox.where import Cluster, hub
from rockroll.sandbox.wire import DEFAULT_SESSION

RENEWALS_AT_ONCE = 4
"""Recyclings and first sessions under way together. How many boxes start at once is the node's to say."""
if TYPE_CHECKING:
    from rockroll.sandbox.cluster.client import HubNode

SHORT_S = 3.0
"""A box that a cluster has not given for so long is told of as missing."""
_log = logging.getLogger(__name__)


class Pool:
    """`size` sandboxes of one kind. `async with Pool(config, 8) as pool:` fills it in the background and empties it
    at the end.

    config: what each box is; it may not carry a name. session: the Bash session that is open in every box before it is
    leased, so that the first command does not wait for a shell; None opens none. cluster: the file of one, over whose
    nodes the boxes are placed; None: $ROCKROLL_CLUSTER, and without it this host's own node. Where a node is lost, its
    boxes are replaced on others; leases of them raise SandboxLost. Where a node drains, its boxes are replaced on
    others as soon as they are not leased. waits: for room in the cluster, before it has any box too; else that is a
    NoRoom.
    """

    def __init__(
        self,
        config: SandboxConfig | None = None,
        size: int = 8,
        *,
        session: str | None = DEFAULT_SESSION,
        cluster: Cluster | None = None,
        waits: bool = False,
    ):
        self.config = config or SandboxConfig()
        if size < 1:
            raise ValueError(f"size: a pool holds at least one sandbox; got {size}")
        if self.config.name is not None:
            raise ValueError(f"name: the boxes of a pool cannot all be called {self.config.name!r}; leave it out")
        self.size = size
        self._hub = hub(cluster)
        self._session, self._waits = session, waits
        self._warm: deque[Sandbox] = deque()
        self._waiting: deque[asyncio.Future[Sandbox]] = deque()
        self._boxes: set[Sandbox] = set()
        """Every box that exists: warm, leased or recycling."""
        self._undeleted: set[Sandbox] = set()
        """Boxes that resisted their deletion; `close` tries it again."""
        self._starting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(RENEWALS_AT_ONCE)
        self._closed = False
        self._tried: set[asyncio.Future[None]] = set()
        """Starts under way that do not wait for room."""
        self._cluster: HubNode | None = None
        self._short = 0
        self.on_short: Callable[[int], None] = lambda boxes: None
        """Told how many boxes a cluster has not given for SHORT_S and more, whenever that changes."""

    async def start(self) -> Self:
        """Begins to fill the pool and returns at once; a lease waits for the first box."""
        self._fill()
        return self

    async def close(self) -> None:
        """Deletes every box, the leased ones too, and ends what was under way."""
        self._closed = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(SandboxError("the pool was closed while a lease waited for a sandbox"))
        self._waiting.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        boxes = self._boxes | self._undeleted
        self._boxes, self._undeleted = set(), set()
        self._warm.clear()
        await delete_all(boxes)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await finish(self.close())

    @contextlib.asynccontextmanager
    async def lease(self) -> AsyncIterator[Sandbox]:
        """One warm box for this block alone. Its files and processes are gone before anyone else gets it.

        Raises what the start of a box raised (ImageMissing, HostError, …) when there is none to give, and SandboxError
        when the pool is closed.
        """
        sandbox = await self._take()
        try:
            yield sandbox
        finally:
            if not self._closed:  # else close() deletes it
                self._spawn(self._renew(sandbox))

    @property
    def warm(self) -> int:
        """Boxes that could be leased at once."""
        return len(self._warm)

    async def _take(self) -> Sandbox:
        if self._closed:
            raise SandboxError("the pool is closed: take leases before close()")
        while self._warm:
            sandbox = self._warm.popleft()
            if sandbox.connected and not self._leaves(sandbox):
                return sandbox
            self._spawn(self._replace(sandbox))  # its node died while it waited here, or is about to go
        waiter: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._fill()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give(waiter.result())  # it was given a box in the moment it was cancelled
            raise

    def _give(self, sandbox: Sandbox) -> None:
        """A box that is as good as new, to the oldest waiter or to the shelf."""
        if self._closed:
            return
        if waiter := self._oldest():
            waiter.set_result(sandbox)
        else:
            self._warm.append(sandbox)

    def _oldest(self) -> asyncio.Future[Sandbox] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _fill(self) -> None:
        while not self._closed and len(self._boxes) + self._starting < self.size:
            self._starting += 1
            self._spawn(self._add())

    async def _add(self, tries: int = 2) -> None:
        # A lease must not go on, unknowing, in a box whose processes died with its node.
        sandbox = Sandbox(self.config, outlives_node=False, base_url="", cluster=self._hub or "")
        try:
            if self._hub and self._cluster is None:
                self._cluster = await connect_to(self._hub)  # type: ignore[assignment]
            await self._placed(sandbox)
            self._boxes.add(sandbox)
            async with self._slots:
                await self._prepare(sandbox)
        except RockrollError as error:
            await self._discard(sandbox)
            if isinstance(error, SandboxLost) and tries > 1:  # its node died: the next one is not to blame
                await self._add(tries - 1)
                return
            self._starting -= 1
            if waiter := self._oldest():
                waiter.set_exception(error)
                if any(not other.done() for other in self._waiting):
                    self._fill()
            else:
                _log.warning("a sandbox of the pool did not start: %s", error)
        else:
            self._starting -= 1
            self._give(sandbox)

    async def _placed(self, sandbox: Sandbox) -> None:
        """Started. A cluster that has just lost a node may have no room for all: who has boxes waits for more."""
        if self._hub is not None and (self._boxes or self._waits):
            await self._when_there_is_room(sandbox)
            return
        tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tried.add(tried)
        try:
            await sandbox.start()
            return
        except NoRoom:
            self._tried.discard(tried)
            while not self._boxes and self._tried:  # others are on their way: room may only have ended with them
                await asyncio.wait(set(self._tried), return_when=asyncio.FIRST_COMPLETED)
            if not self._boxes:
                raise
        finally:
            self._tried.discard(tried)
            tried.set_result(None)
        await self._when_there_is_room(sandbox)

    async def _when_there_is_room(self, sandbox: Sandbox) -> None:
        missing = False

        def miss() -> None:
            nonlocal missing
            missing = True
            self._short += 1
            self.on_short(self._short)

        timer = asyncio.get_running_loop().call_later(SHORT_S, miss)
        try:
            await sandbox.start_when_there_is_room()
        finally:
            timer.cancel()
            if missing:
                self._short -= 1
                self.on_short(self._short)

    def _leaves(self, sandbox: Sandbox) -> bool:
        """Whether its node is asked to go: who is in the box stays, nobody else comes."""
        nodes = self._cluster.nodes if self._cluster else ()
        return any(view.name == sandbox.info.node and view.state == "draining" for view in nodes)

    async def _renew(self, sandbox: Sandbox) -> None:
        if self._leaves(sandbox):
            await self._replace(sandbox)
            return
        try:
            async with self._slots:
                recycled = await sandbox.recycle()
                if recycled.ok:
                    await self._prepare(sandbox)
        except RockrollError as error:
            reason = str(error)
        else:
            if recycled.ok:
                self._give(sandbox)
                return
            reason = recycled.reason
        _log.info("sandbox %s could not be made new and is replaced: %s", sandbox.id, reason)
        await self._replace(sandbox)

    async def _replace(self, sandbox: Sandbox) -> None:
        await self._discard(sandbox)
        self._fill()

    async def _prepare(self, sandbox: Sandbox) -> None:
        if self._session is not None:
            await sandbox.create_session(self._session)

    async def _discard(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.delete()
        except RockrollError as error:
            _log.warning("sandbox %s could not be deleted: %s", sandbox, error)
            self._undeleted.add(sandbox)
        self._boxes.discard(sandbox)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
