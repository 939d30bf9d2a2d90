"""Sandboxes and a cluster that grows and shrinks: what Ray's autoscaler and Ray's drains have to do with them.

In: the hub's nodes with their boxes, Ray's draining nodes, how many boxes runs wait for. Out: a node with boxes counts
as busy in Ray, and is not ended as idle; one that Ray drains gets no more boxes, and goes when it has none left; boxes
that wait are shown as a demand. Leaves arithmetic to demand.py, moving boxes to who owns them.

    node without boxes ◄──► with boxes: held by an actor that takes nothing
                                 └── Ray drains it ──► drained in the hub ──► its last box ends ──► let go: Ray ends it
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rockroll.placement.on_ray.demand import Has, Waits, bundles
from rockroll.placement.on_ray.joining import draining
from rockroll.sandbox.cluster.client import HubNode, connect_hub
from rockroll.sandbox.cluster.file import ClusterFile
from rockroll.sandbox.cluster.wire import NodeView

LOOK_S = 2.0
"""So often it is looked who drains and who has boxes: Ray tells nobody of the one, the hub of the other only who
asks."""
WANTED_S = 90.0
"""So long a run's word on what it waits for holds; it says so again every third of that."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A node of Ray, as Ray knows it."""

    name: str
    """In the hub, where it is one of its nodes."""
    cpus: float
    memory: float
    gpus: float
    head: bool


class _Held:
    """Where it is, Ray sees a worker, and does not take the node for idle."""


_HELD: Any = ray.remote(num_cpus=0, max_restarts=0)(_Held)


class Scaling:
    """One of a cluster, on the loop that `run` is called on."""

    def __init__(self, hub: Path) -> None:
        self._file = hub
        self._holds: dict[str, Any] = {}
        self._wanted: dict[str, tuple[Waits, float]] = {}
        """Boxes that somebody waits for, and until when that holds."""
        self._asked: list[dict[str, float]] = []
        self._drained: set[str] = set()

    def want(self, who: str, waits: Waits) -> None:
        """What somebody waits for now; none of it where its count is 0."""
        self._wanted[who] = waits, asyncio.get_running_loop().time() + WANTED_S

    async def run(self, members: Mapping[str, Member]) -> None:
        """For ever. members: by Ray's id, those alive; read anew each time."""
        hub: HubNode | None = None
        while True:
            try:
                if hub is None:
                    said = ClusterFile.read(self._file)
                    hub = await connect_hub(said.hub, said.server_key)
                await self._look(hub, dict(members))
            except Exception as error:  # noqa: BLE001 - what one look met, Ray's or the hub's, the next may not
                _log.warning("who drains and who has sandboxes is not known: %s", error)
            await asyncio.sleep(LOOK_S)

    async def _look(self, hub: HubNode, members: dict[str, Member]) -> None:
        views = {view.name: view for view in await hub.refresh()}
        leaving = await asyncio.to_thread(draining)
        for id, member in members.items():
            if (view := views.get(member.name)) is None:
                continue
            if id in leaving and id not in self._drained:
                _log.info("Ray drains %s: it gets no more sandboxes, and has %d", member.name, view.boxes)
                await hub.drain(member.name)
                self._drained.add(id)
            self._hold(id, member, view)
        for id in self._holds.keys() - members.keys():
            del self._holds[id]
        await self._ask(members, views)

    def _hold(self, id: str, member: Member, view: NodeView) -> None:
        held = self._holds.get(id)
        if view.boxes and held is None and not member.head and id not in self._drained:
            there = NodeAffinitySchedulingStrategy(id, soft=False)
            self._holds[id] = _HELD.options(scheduling_strategy=there).remote()
        elif not view.boxes and held is not None:
            ray.kill(self._holds.pop(id))

    async def _ask(self, members: dict[str, Member], views: dict[str, NodeView]) -> None:
        now = asyncio.get_running_loop().time()
        self._wanted = {who: said for who, said in self._wanted.items() if said[1] > now and said[0].count}
        nodes = [_has(each, views.get(each.name)) for id, each in members.items() if id not in self._drained]
        wanted = bundles(nodes, [waits for waits, _ in self._wanted.values()])
        if wanted != self._asked:
            _log.info("Ray is asked for %d nodes, and there are %d", len(wanted), len(nodes))
            await asyncio.to_thread(request_resources, bundles=wanted)
            self._asked = wanted


def _has(member: Member, view: NodeView | None) -> Has:
    own = {"cpus": member.cpus, "memory": member.memory, "gpus": member.gpus, "head": member.head}
    if view is None or view.state != "up":
        return Has(**own)
    return Has(
        **own,
        boxes=view.boxes,
        room=view.room,
        cpus_left=view.cpus - view.cpus_granted,
        memory_left=view.memory - view.memory_granted,
    )
