"""The processes of one run, on the nodes of a Ray cluster.

In: what each process needs, and the address of a cluster. Out: `Places`, with the surface of local.Processes: room
reserved by a placement group, one actor a process, which holds it on its node (actor.py, host.py). Ray carries no data:
keys go out with the actors, all else over rockroll's own links. Leaves what a process does to its module, which node it
gets to needs.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from rockroll.placement.on_ray.joining import connect, fitting, nodes_within, rooms  # first: says so without Ray

# isort: split
import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rockroll import rpc
from rockroll.errors import HostError, ProcessDied
from rockroll.placement.local import Place, Processes
from rockroll.placement.needs import Fit, Needs, fit
from rockroll.placement.on_ray import far, keeper, scaling
from rockroll.placement.on_ray.actor import HOST
from rockroll.placement.on_ray.demand import Waits
from rockroll.placement.on_ray.drains import Drains
from rockroll.placement.on_ray.host import versions
from rockroll.placement.on_ray.why import why
from rockroll.placement.usage import Usage
from rockroll.rpc import keys

RESERVED_S = 30.0
"""From asking for room that is free to having it; then somebody else was faster."""
STARTED_S = 60.0
"""An actor's process takes seconds to start on a busy node."""
REGROUP_S = 60.0
"""An engine that waits for room while no other is there gives up after this: by then a lost one would be back."""
_NODE_ID = "ray.io/node-id"
_log = logging.getLogger(__name__)


class Places(Processes):
    """All processes of a run on a cluster. Use as `async with Places(log_dir, address)`."""

    explain_s = 5.0

    def __init__(self, log_dir: Path, address: str) -> None:
        self._joined = connect(address)
        super().__init__(log_dir)
        self._address = address
        self._run = f"{os.getpid()}-{os.urandom(4).hex()}"
        self.grows = nodes_within() > 0
        self.gpus = ray.cluster_resources().get("GPU", 0.0)
        self._node = ray.get_runtime_context().get_node_id()
        self._key = self.runtime / "rpc.key"
        keys.make(self._key)
        self._files = far.Files(ray.util.get_node_ip_address(), self._key, log_dir / "fetched")
        self._groups: list[PlacementGroup] = []
        self._bundles: dict[str, tuple[PlacementGroup, int]] = {}
        self._actors: dict[str, Any] = {}
        """By what they hold."""
        self._places: list[far.FarPlace] = []
        self._lost: dict[str, str] = {}
        """What of the run was lost with a node, and how; Ray takes some seconds longer to know."""
        self._gone: set[str] = set()
        """Nodes that were lost, or are drained."""
        self._needs: dict[str, Needs] = {}
        self._warned: set[str] = set()
        """Processes whose node is about to go, and that was said."""
        self._short: dict[str, Waits] = {}
        """Sandboxes that are waited for, by their kind."""
        self._saying: asyncio.TimerHandle | None = None
        self._headless = False
        self._head: asyncio.Task[None] | None = None
        self._drains: Drains | None = None
        self._moves: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Places:
        await self._files.start()
        ip, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._head = asyncio.ensure_future(far.watch_port(ip.strip("[]"), int(port), self._head_gone))
        self._drains = Drains(self._drained)
        return self

    def _drained(self, leaving: set[str]) -> None:
        for place in [each for each in self._places if each.spot.node in leaving]:
            task = asyncio.ensure_future(self._leave_drained(place))
            self._moves.add(task)
            task.add_done_callback(self._moves.discard)

    async def _leave_drained(self, place: far.FarPlace) -> None:
        """An engine goes to another node as soon as there is room; a trainer's rank stays to the end."""
        process, name = place.process, place.name
        if process is None or process.ended.done():
            return
        if name not in self._warned:
            self._warned.add(name)
            then = "it goes to another node once there is room" if place.movable else "with it, the run ends; --resume"
            _log.warning("Ray drains %s, where %s runs: %s", place.where, name, then)
        if place.movable and not fit({name: self._needs[name]}, rooms(self._gone)).missing:
            self._gone.add(place.spot.node)
            await process.move()

    def _head_gone(self) -> None:
        self._headless = True
        self.fail(
            HostError(
                f"Ray's head, {ray.get_runtime_context().gcs_address}, is gone, and with it the cluster; start it "
                "again (ray start --head) and continue with --resume, there or on any other cluster"
            )
        )

    def usage(self) -> list[Usage]:
        found = [place.usage for place in self._places if place.ended is not None and not place.ended.done()]
        return [each for each in found if each is not None]

    def short_of(self, what: str, boxes: int, cpus: float, memory: int) -> None:
        self._short[what] = Waits(count=boxes, cpus=cpus, memory=memory)
        self._say_short()

    def _say_short(self) -> None:
        """Ray's autoscaler is to know of it (scaling.py)."""
        loop = asyncio.get_running_loop()
        for what, waits in self._short.items():
            loop.run_in_executor(None, keeper.want, f"{self._run} {what}", waits)
        self._short = {what: waits for what, waits in self._short.items() if waits.count}
        if self._saying is not None:
            self._saying.cancel()
        self._saying = loop.call_later(scaling.WANTED_S / 3, self._say_short) if self._short else None

    async def reserve(self, needs: Mapping[str, Needs]) -> None:
        """HostError, in one sentence, where the cluster has no room for all of them, and gets none in time."""
        if not needs:
            return
        found = await asyncio.to_thread(fitting, needs, self._gone)
        patience = nodes_within()
        if found.missing and patience:
            _log.warning("%s; waits up to %g s for nodes", found.missing, patience)
            if await self._wait(needs, lambda: _sleep(patience)):
                return
            found = Fit(missing=f"after {patience:g} s of waiting for nodes, {found.missing}")
        if found.missing:
            before = "; ".join(self._lost[name] for name in needs if name in self._lost)
            said = f"{before}, and no other has room: " if before else f"--ray {self._address}: "
            cure = "" if patience else "; where nodes come when they are asked for, --nodes-within 10m waits for them"
            raise HostError(f"{said}{found.missing} (rockroll plan RECIPE --ray shows it all{cure})")
        order = list(needs)
        group = placement_group(
            [_bundle(needs[name]) for name in order],
            strategy="PACK",
            bundle_label_selector=[{_NODE_ID: found.places[name].node} for name in order],
        )
        self._groups.append(group)
        if not await asyncio.to_thread(group.wait, RESERVED_S):
            raise HostError(
                f"--ray {self._address}: the room for {', '.join(order)} was free, and was not given within "
                f"{RESERVED_S:g} s: others may have taken it; begin again"
            )
        self._have(group, order)

    def _have(self, group: PlacementGroup, order: Sequence[str]) -> None:
        self._bundles |= {name: (group, index) for index, name in enumerate(order)}

    async def _wait(self, needs: Mapping[str, Needs], over: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Room for these, which there is none for now; whether it came before `over` did. Meanwhile it is a pending
        placement group, which is what Ray's autoscaler starts nodes for."""
        order = list(needs)
        apart = [{_NODE_ID: f"!in({','.join(sorted(self._gone))})"}] * len(order) if self._gone else None
        bundles = [_bundle(needs[name]) for name in order]
        group = placement_group(bundles, strategy="PACK", bundle_label_selector=apart)  # pyright: ignore
        self._groups.append(group)
        ready, waited = asyncio.ensure_future(_awaited(group.ready())), asyncio.ensure_future(over())
        came = False
        try:
            await asyncio.wait([ready, waited], return_when=asyncio.FIRST_COMPLETED)
            came = ready.done() and ready.exception() is None
        finally:
            waited.cancel()
            ready.cancel()
            await asyncio.gather(ready, waited, return_exceptions=True)
            if not came:
                self._groups.remove(group)
                remove_placement_group(group)
        if came:
            self._have(group, order)
        return came

    async def _again(self, name: str, needs: Needs) -> None:
        """Another room for a process that was lost. HostError where there is none, and none comes: an engine waits for
        it as long as the run goes on with others."""
        try:
            await self.reserve({name: needs})
        except HostError as error:
            if not self._others(name):
                raise
            _log.warning("%s waits for a node: %s", name, error)

            async def alone() -> None:
                while others := self._others(name):
                    await asyncio.wait(others)
                    if not self._others(name):
                        await asyncio.sleep(REGROUP_S)  # others that were lost with this one may be on their way back

            if not await self._wait({name: needs}, alone):
                raise

    def _others(self, name: str) -> list[asyncio.Task[None]]:
        """The ends, not yet come, of the processes that are what this one is."""
        kind = name.rpartition("-")[0]
        ends = [place.ended for place in self._places if place.name != name and place.name.rpartition("-")[0] == kind]
        return [end for end in ends if end is not None and not end.done()]

    def lost(self, place: far.FarPlace, error: ProcessDied) -> None:
        """Its node is not to be counted on any more."""
        self._lost[place.name] = error.message.splitlines()[0].partition("; ")[0]
        self._gone.add(place.spot.node)

    async def place(self, name: str, needs: Needs, attempt: int = 0) -> Place:
        self._needs[name] = needs
        self._warned.discard(name)
        if attempt:
            await self._vacate(name)
        if name not in self._bundles:
            await (self._again(name, needs) if attempt else self.reserve({name: needs}))
        group, index = self._bundles[name]
        actor = HOST.options(
            max_restarts=0,
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory or None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        ).remote(self._run, self._key.read_bytes())
        self._actors[name] = actor
        try:
            spot: far.Spot = await asyncio.wait_for(_awaited(actor.spot.remote()), STARTED_S)
        except (RayError, TimeoutError) as error:
            raise HostError(
                f"{name} has no process on Ray: {why(error)}; rockroll doctor --ray looks at each node"
            ) from error
        if wrong := far.check_versions(spot, versions()):
            raise HostError(wrong)
        here = self.address(f"{name}.{attempt}" if attempt else name) if spot.node == self._node else ""
        link = await rpc.connect(spot.address, self._key)
        log = self._log_dir / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        place = far.FarPlace(self, name, spot, link, self._files, log, here=here, on_lost=self.lost)
        self._places.append(place)
        return place

    async def _vacate(self, name: str) -> None:
        """What held the process before is gone. Its room is its own still, unless that is lost with its node."""
        before = next((place for place in self._places if place.name == name), None)
        if before is not None:
            await before.leave()
            self._places.remove(before)
        if (actor := self._actors.pop(name, None)) is not None:
            ray.kill(actor)
        if before is not None and before.spot.node in self._gone:
            group, _ = self._bundles.pop(name)
            if not any(other is group for other, _ in self._bundles.values()):
                remove_placement_group(group)

    async def __aexit__(self, *exc: Any) -> None:
        if self._drains is not None:
            self._drains.stop()
        if self._head is not None:
            self._head.cancel()
        for move in self._moves:
            move.cancel()
        await asyncio.gather(*self._moves, return_exceptions=True)
        if self._saying is not None:
            self._saying.cancel()
        await asyncio.gather(*(place.leave() for place in self._places))
        await self._files.close()
        await super().__aexit__(*exc)
        if self._headless:
            return  # nothing more is asked of Ray: its calls would wait a minute for the head, then abort this process
        for actor in self._actors.values():
            ray.kill(actor)
        for group in self._groups:
            remove_placement_group(group)
        if self._drains is not None:
            await self._drains.ended()
        if self._joined:
            await asyncio.to_thread(ray.shutdown)


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def _awaited(reference: Any) -> Any:
    return await reference


def _bundle(needs: Needs) -> dict[str, float]:
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": float(needs.memory)}
    return {name: amount for name, amount in wanted.items() if amount}
