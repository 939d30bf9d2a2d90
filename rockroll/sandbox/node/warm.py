"""Warm pools: boxes of a kind that stand ready, with their session open and their model endpoint bound.

In: pools by name (node.yaml, `pool.set`), and calls for a box. Out: a box at once where one of its kind stands ready.
Leaves each pool's state to shelf.py, and making and removing a box to the host, whose functions it is given.

Who asks for a box gets a warm one where all that Podman made it with is the same: image, limits, network, mounts,
environment, user. Its name, labels, time to live and owner it gets as it is handed out. Nobody else has ever run
anything in it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from rockroll.errors import RockrollError, UsageError
from rockroll.sandbox.config import SandboxConfig, kind
from rockroll.sandbox.node.node_config import PoolSpec, pool_fault
from rockroll.sandbox.node.shelf import Shelf
from rockroll.sandbox.wire import Owner, PoolInfo

_log = logging.getLogger(__name__)


class Boxed(Protocol):
    """What is known of a box here."""

    @property
    def id(self) -> str: ...

    config: SandboxConfig


B = TypeVar("B", bound=Boxed)


class _Pool:
    def __init__(self, name: str, spec: PoolSpec, owner: str, now: float) -> None:
        self.name, self.owner = name, owner
        """owner: "node.yaml", "detached", or the rpc peer with whose connection it goes."""
        self.shelf = Shelf(spec, now)
        self.config = spec.sandbox()
        self.kind = kind(self.config)
        self.timer: asyncio.TimerHandle | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.changed: asyncio.Future[None] | None = None
        """Done at the next change, where somebody waits for one."""


class Warm(Generic[B]):
    """The pools of a node.

    make: a warm box of a config, ready but for its owner; cancelled, it leaves nothing. remove: ends one. usable:
    whether one may still be handed out; it may ask Podman. changed: after the pools that must outlive the node changed.
    """

    def __init__(
        self,
        make: Callable[[SandboxConfig], Awaitable[B]],
        remove: Callable[[B], Awaitable[None]],
        usable: Callable[[B], Awaitable[bool]],
        changed: Callable[[dict[str, PoolSpec]], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._remove, self._usable, self._saved, self._clock = make, remove, usable, changed, clock
        self._pools: dict[str, _Pool] = {}
        self._boxes: dict[str, B] = {}
        self._removals: set[asyncio.Task[None]] = set()

    # -- pools

    def set(self, name: str, spec: PoolSpec, owner: str) -> None:
        """Makes a pool or changes it; it fills in the background. Raises UsageError."""
        if fault := pool_fault(name, spec):
            raise UsageError(f"pool {name}: {fault}")
        pool = self._pools.get(name)
        if pool is not None and pool.owner != owner and "node.yaml" in (pool.owner, owner):
            raise UsageError(f"pool {name}: node.yaml has one of this name; change it there, or choose another name")
        made = _Pool(name, spec, owner, self._clock())
        for other in self._pools.values():
            if other.name != name and other.kind == made.kind:
                raise UsageError(f"pool {name}: pool {other.name} has boxes of the same kind; change that one")
        if pool is not None and pool.kind == made.kind:
            pool.owner = owner
            self._discard(pool.shelf.change(spec, self._clock()))
        else:
            if pool is not None:
                self._end(pool)
            pool = self._pools[name] = made
        self._saved(self._lasting())
        self._tend(pool)

    def delete(self, name: str) -> PoolInfo:
        """Ends a pool and removes its boxes. Raises UsageError."""
        pool = self._pool(name)
        if pool.owner == "node.yaml":
            raise UsageError(f"pool {name}: it is in node.yaml; remove it there")
        info = self._info(pool)
        self._end(pool)
        self._saved(self._lasting())
        return info

    def follow(self, specs: dict[str, PoolSpec]) -> None:
        """The pools of node.yaml are these now. Raises UsageError."""
        for pool in [pool for pool in self._pools.values() if pool.owner == "node.yaml" and pool.name not in specs]:
            self._end(pool)
        for name, spec in specs.items():
            pool = self._pools.get(name)
            if pool is None or pool.owner != "node.yaml" or pool.shelf.spec != spec:
                self.set(name, spec, "node.yaml")

    def owner_gone(self, peer: str) -> None:
        """The pools of this connection end."""
        for pool in [pool for pool in self._pools.values() if pool.owner == peer]:
            self._end(pool)

    def list(self) -> list[PoolInfo]:
        return [self._info(pool) for pool in self._pools.values()]

    async def filled(self, name: str) -> PoolInfo:
        """Returns when the pool is full, or cannot be filled: then `fault` says why. Raises UsageError where there is
        none, or no more."""
        while True:
            pool = self._pool(name)
            if len(pool.shelf.ready) >= pool.shelf.spec.size or pool.shelf.fault:
                return self._info(pool)
            pool.changed = pool.changed or asyncio.get_running_loop().create_future()
            await asyncio.shield(pool.changed)

    # -- boxes

    @property
    def boxes(self) -> Iterable[B]:
        """Those that stand ready."""
        return self._boxes.values()

    @property
    def count(self) -> int:
        """Boxes that stand ready or are being made."""
        return len(self._boxes) + self.making

    def ready(self) -> dict[bytes, int]:
        """How many stand ready, by kind."""
        return {pool.kind: len(pool.shelf.ready) for pool in self._pools.values() if pool.shelf.ready}

    @property
    def making(self) -> int:
        """How many are being made."""
        return sum(pool.shelf.making for pool in self._pools.values())

    def holds(self, config: SandboxConfig) -> bool:
        """Whether a box of this kind stands ready."""
        return (pool := self._of(config)) is not None and bool(pool.shelf.ready)

    async def take(self, config: SandboxConfig) -> B | None:
        """A box of this kind, no longer the pool's; None where none stands ready."""
        pool = self._of(config)
        if pool is None:
            return None
        try:
            while (id := pool.shelf.take(self._clock())) is not None:
                box = self._boxes.pop(id)
                try:
                    if await self._usable(box):
                        return box
                except BaseException:
                    self._spawn_removal(box)
                    raise
                self._spawn_removal(box)
            return None
        finally:
            self._tend(pool)

    def died(self, id: str) -> None:
        """A box that stood ready has ended."""
        for pool in self._pools.values():
            if pool.shelf.gone(id):
                self._discard([id])
                self._tend(pool)

    async def give_up(self) -> bool:
        """Removes one box to make room; False where no box stands ready. The fullest pool gives first."""
        for pool in sorted(self._pools.values(), key=lambda pool: -len(pool.shelf.ready)):
            if (id := pool.shelf.give_up(self._clock())) is not None:
                self._tend(pool)
                await asyncio.shield(self._spawn_removal(self._boxes.pop(id)))
                return True
        return False

    def room(self) -> None:
        """Somebody's box has gone."""
        for pool in self._pools.values():
            pool.shelf.room()
            self._tend(pool)

    async def close(self) -> None:
        """Every pool ends; returns when none of their boxes is left. Raises what a removal raised."""
        for pool in list(self._pools.values()):
            self._end(pool)
        done: list[Any] = []
        while self._removals:
            done += await asyncio.gather(*self._removals, return_exceptions=True)
        for error in done:
            if isinstance(error, Exception):  # a start that was cancelled is none
                raise error

    # -- within

    def _of(self, config: SandboxConfig) -> _Pool | None:
        if not self._pools or config.snapshot is not None:
            return None
        wanted = kind(config)
        return next((pool for pool in self._pools.values() if pool.kind == wanted), None)

    def _pool(self, name: str) -> _Pool:
        try:
            return self._pools[name]
        except KeyError:
            there = ", ".join(sorted(self._pools)) or "none"
            raise UsageError(f"no pool {name!r}; there are: {there}") from None

    def _tend(self, pool: _Pool) -> None:
        """Starts what is wanted, and looks again when time alone will change something."""
        if self._pools.get(pool.name) is not pool:
            return
        now = self._clock()
        self._discard(pool.shelf.look(now))
        for _ in range(pool.shelf.wanted(now)):
            pool.shelf.begin()
            task = asyncio.get_running_loop().create_task(self._add(pool))
            pool.tasks.add(task)
            task.add_done_callback(pool.tasks.discard)
        if pool.timer is not None:
            pool.timer.cancel()
        wait = pool.shelf.next_look(now)
        pool.timer = None if wait is None else asyncio.get_running_loop().call_later(wait, self._tend, pool)
        if pool.changed is not None:
            pool.changed.set_result(None)
            pool.changed = None

    async def _add(self, pool: _Pool) -> None:
        try:
            box = await self._make(pool.config)
        except RockrollError as error:
            pool.shelf.failed(error.message, self._clock())
            _log.warning("a box of pool %s could not be made: %s", pool.name, error)
        except asyncio.CancelledError:
            pool.shelf.ended()
            raise
        except Exception as error:  # noqa: BLE001 - a bug in one start must not end the pool without a word
            pool.shelf.failed(f"{type(error).__name__}: {error}", self._clock())
            _log.exception("a box of pool %s could not be made", pool.name)
        else:
            if self._pools.get(pool.name) is pool and pool.shelf.made(box.id):
                self._boxes[box.id] = box
            else:
                self._spawn_removal(box)
        self._tend(pool)

    def _end(self, pool: _Pool) -> None:
        del self._pools[pool.name]
        if pool.timer is not None:
            pool.timer.cancel()
        for task in pool.tasks:
            task.cancel()
            self._keep(task)
        self._discard(list(pool.shelf.ready))
        pool.shelf.ready.clear()
        if pool.changed is not None:
            pool.changed.set_result(None)

    def _discard(self, ids: Iterable[str]) -> None:
        for id in ids:
            self._spawn_removal(self._boxes.pop(id))

    def _spawn_removal(self, box: B) -> asyncio.Task[None]:
        async def remove() -> None:
            try:
                await self._remove(box)
            except RockrollError as error:
                _log.error("a warm sandbox could not be removed: %s", error)
                raise

        return self._keep(asyncio.get_running_loop().create_task(remove()))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._removals.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._removals.discard(task)
        if not task.cancelled():
            task.exception()  # it was logged; nobody else asks

    def _lasting(self) -> dict[str, PoolSpec]:
        return {pool.name: pool.shelf.spec for pool in self._pools.values() if pool.owner == "detached"}

    def _info(self, pool: _Pool) -> PoolInfo:
        shelf = pool.shelf
        owner: Owner = "detached" if pool.owner in ("detached", "node.yaml") else "connection"
        return PoolInfo(
            name=pool.name,
            size=shelf.spec.size,
            ready=len(shelf.ready),
            making=shelf.making,
            taken=shelf.taken,
            missed=shelf.missed,
            image=pool.config.image_name,
            config=shelf.spec.config,
            idle_s=shelf.spec.idle_s,
            asleep=shelf.asleep,
            fault=shelf.fault,
            owner=owner,
            in_file=pool.owner == "node.yaml",
        )
