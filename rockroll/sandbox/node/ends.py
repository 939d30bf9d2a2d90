"""Who or what ends a box of this node, and its removal, once.

In: boxes that have been made or adopted; connections that hold some; the end of those, of a TTL, of an idle time. Out:
each box removed, marked in the registry, and the node told. Leaves the removal itself to life.py.

Every box has an owner. A `connection` box goes when the rpc connection that made it ends, however it ends; a `detached`
one when it is deleted or its TTL is over. One whose connection an earlier node had goes when its owner's process ends,
unless that process claims it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from rockroll import rpc
from rockroll.errors import RockrollError, UsageError
from rockroll.sandbox.boxes.box import Box
from rockroll.sandbox.boxes.registry import Registry, Row
from rockroll.sandbox.linux.process import Process, birth
from rockroll.sandbox.node.admission import Admission
from rockroll.sandbox.wire import Cause

REMOVE_AGAIN_S = 60.0
"""A box whose time is over or whose owner is gone, and which Podman could not remove, is tried again after this."""
_log = logging.getLogger(__name__)


class Ends:
    """boxes: by id; a box that is removed is taken out. on_removed: called with its id then. on_room: called where it
    was one of them, and no warm one."""

    def __init__(
        self,
        boxes: dict[str, Box],
        registry: Registry,
        admission: Admission,
        on_removed: Callable[[str], None],
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._boxes, self._registry, self._admission = boxes, registry, admission
        self._on_removed, self._on_room = on_removed, on_room
        self._owned: dict[str, set[str]] = {}
        """Connection → the boxes that end with it."""
        self._owners: dict[str, Process] = {}
        """The processes of owners whose boxes an earlier node made, until they claim them."""
        self._ttl: dict[str, asyncio.TimerHandle] = {}
        self._idle: dict[str, asyncio.TimerHandle] = {}
        self._removing: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- owners

    def own(self, box: Box, peer: rpc.Peer) -> None:
        """The box ends with this connection."""
        self._owned.setdefault(peer.id, set()).add(box.id)

    async def disconnected(self, peer: rpc.Peer) -> None:
        """The owner of connection boxes is gone: so are they."""
        boxes = [self._boxes[id] for id in self._owned.pop(peer.id, ()) if id in self._boxes]
        done = await asyncio.gather(*(self.remove(box, "owner_gone") for box in boxes), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                _log.error("a sandbox of a gone client could not be removed: %s", error)

    def watch_owner(self, row: Row) -> None:
        """A box of an earlier node's connection. ProcessLookupError where its owner has just ended."""
        owner = self._owners[row.id] = Process(row.owner_pid)
        if birth(row.owner_pid) != row.owner_birth:
            raise ProcessLookupError("its owner has just ended")

        def ended(_: object) -> None:
            if box := self._boxes.get(row.id):
                self.spawn(self.remove(box, "owner_gone"))

        owner.ended.add_done_callback(ended)

    def claim(self, box: Box, peer: rpc.Peer) -> None:
        """The owner's process is back after its node has died: from now on its connection holds the box again."""
        if owner := self._owners.get(box.id):
            if owner.pid != peer.pid:
                raise UsageError(f"sandbox {box.id} belongs to process {owner.pid}; only that process can claim it")
            self.own(box, peer)
            del self._owners[box.id]
            owner.forget()

    # -- time

    def watch_time(self, box: Box) -> None:
        """Its TTL and its idle time, where it has them."""
        if box.config.ttl_s is not None:
            left = max(0.0, box.created + box.config.ttl_s - time.time())
            loop = asyncio.get_running_loop()
            self._ttl[box.id] = loop.call_later(left, lambda: self.spawn(self.remove(box, "ttl")))
        if box.config.idle_ttl_s is not None:
            self._look_idle(box, box.config.idle_ttl_s)

    def _look_idle(self, box: Box, limit: float) -> None:
        """Now, and again when it could have been idle for long enough at the earliest."""
        left = limit if box.calls.under_way else box.calls.last + limit - time.monotonic()
        if left > 0:
            self._idle[box.id] = asyncio.get_running_loop().call_later(left, self._look_idle, box, limit)
        else:
            self.spawn(self.remove(box, "ttl"))

    # -- removal

    async def remove(self, box: Box, cause: Cause = "deleted") -> None:
        """Once for each box, to its end: a second caller waits for the first, a cancelled one leaves it running."""
        if box.id not in self._removing:
            task = asyncio.get_running_loop().create_task(self._remove_once(box, cause))
            self._removing[box.id] = task
            task.add_done_callback(lambda _: self._removing.pop(box.id, None))
        await asyncio.shield(self._removing[box.id])

    def is_removing(self, box: Box) -> bool:
        return box.id in self._removing

    async def _remove_once(self, box: Box, cause: Cause) -> None:
        try:
            async with self._admission.turn(box.account, "remove"):
                await box.life.remove(cause)
        except RockrollError:
            if cause in ("ttl", "owner_gone"):  # nobody else will ask again
                loop = asyncio.get_running_loop()
                self._ttl[box.id] = loop.call_later(REMOVE_AGAIN_S, lambda: self.spawn(self.remove(box, cause)))
            raise
        for timers in (self._ttl, self._idle):
            if timer := timers.pop(box.id, None):
                timer.cancel()
        if owner := self._owners.pop(box.id, None):
            owner.forget()
        mine = self._boxes.pop(box.id, None)
        self._registry.drop(box.id, cause, time.time())
        for owned in self._owned.values():
            owned.discard(box.id)
        self._on_removed(box.id)
        if mine is not None:
            self._on_room()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A removal that nobody may wait for; `close` sees it to its end."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)
        return task

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("a sandbox could not be removed: %s", error)

    async def close(self) -> None:
        """Nothing ends any more but by `remove`; what had begun has come to its end."""
        for timer in (*self._ttl.values(), *self._idle.values()):
            timer.cancel()
        for owner in self._owners.values():
            owner.forget()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A removal whose caller is gone is seen to its end: a box half removed cannot be left to the next node.
        await asyncio.gather(*self._removing.values(), return_exceptions=True)
