"""A cluster larger than there is: the real scheduler, with everything around it simulated.

In: how many nodes and boxes. Out: how long until all boxes are up, what the hub spends on each, how long it takes to
make good for lost nodes. Nodes start boxes at a measured rate, messages take a fixed time; the scheduler's own work is
done, and its processor time is what the simulated hub is busy for. Leaves real nodes to bench/sandbox.py and the wire
to bench/cluster.py.

    owner ── want ──► hub: ask ──► placed ──► node: its queue ── started ──► owner: settle
                       one at a time, as the one process it is             └─► hub: report
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rockroll.errors import UsageError
from rockroll.sandbox.cluster.presence import SUSPECT_S
from rockroll.sandbox.cluster.scheduler import Node, Scheduler
from rockroll.sandbox.cluster.wire import BoxRow, Load, Placed, Report, Settle, Want

STARTS_PER_S = 14.0
"""Of one node: `rockroll bench sandbox --count 500` on two cores."""
AT_ONCE = 4
"""Starts that a node takes on together (its admission)."""
ONE_WAY_S = 0.0005
FRAME_S = 30e-6
"""What the hub spends on a frame beside what is in it: a receive and a send."""
OWNERS = 16
LIFE_S = 120.0
"""A box's mean life while they come and go: exponential."""
CHURN_S = 30.0
LOST = 0.02
"""The part of the nodes that are lost at once."""
CPUS, MEMORY, PIDS = 1.0, 256 << 20, 128
NODE_CPUS, NODE_MEMORY, NODE_PIDS = 16.0, 64 << 30, 1 << 20


@dataclass
class _Box:
    owner: str
    id: str
    node: str = ""
    ticket: int = 0


@dataclass
class _Host:
    """A simulated node: a queue before AT_ONCE places."""

    name: str
    queue: deque[_Box] = field(default_factory=deque)
    busy: int = 0
    gone: bool = False


class _World:
    """Simulated time, and the hub's place in it."""

    def __init__(self, nodes: int, rate: float) -> None:
        self.now = self.free = self.spent = 0.0
        self.costs: list[float] = []
        """Processor seconds of each piece of the scheduler's work since they were last taken."""
        self.up: dict[str, _Box] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._start_s = AT_ONCE / rate
        self._random = random.Random(7)
        self._churning = False
        self.scheduler = Scheduler(ratio=32.0)
        self.hosts = {f"node-{i:04d}": _Host(f"node-{i:04d}") for i in range(nodes)}
        for name in self.hosts:
            self.scheduler.join(name, NODE_CPUS, NODE_MEMORY, NODE_PIDS, ["box"], _load(0))

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), what))

    def run(self, until: Callable[[], bool]) -> None:
        while self._events and not until():
            self.now, _, what = heapq.heappop(self._events)
            what()

    def hub(self, message: Any, work: Callable[[], None]) -> None:
        """One message: decoded, worked on, answered. The hub does one after the other."""
        data = msgspec.msgpack.encode(message)
        begun = time.thread_time()
        msgspec.msgpack.decode(data, type=type(message))
        work()
        cost = time.thread_time() - begun
        self.costs.append(cost)
        self.free = max(self.now, self.free) + cost + FRAME_S
        self.spent += cost + FRAME_S

    # -- one box

    def ask(self, owner: str) -> None:
        """An owner wants a box, now."""
        box = _Box(owner, f"{owner}-{next(self._number)}")
        want = Want(owner=owner, cpus=CPUS, memory=MEMORY, pids=PIDS, image="box", kind="k", wait=True)
        self.at(self.now + ONE_WAY_S, lambda: self.hub(want, lambda: self._ask(box, want)))

    def _ask(self, box: _Box, want: Want) -> None:
        def done(node: Node, ticket: int) -> None:
            msgspec.msgpack.encode(Placed(node=node.name, trunk=b"trunk", ticket=ticket))
            box.node, box.ticket = node.name, ticket
            # to the owner, and its call from there through the hub to the node; the node's answer comes that way too
            self.free += 2 * FRAME_S
            self.spent += 2 * FRAME_S
            self.at(max(self.now, self.free) + 2 * FRAME_S + 3 * ONE_WAY_S, lambda: self._arrive(box))

        self.scheduler.ask(want, done)

    def _arrive(self, box: _Box) -> None:
        host = self.hosts[box.node]
        if host.gone:
            self._lost(box)
            return
        host.queue.append(box)
        self._next(host)

    def _next(self, host: _Host) -> None:
        while host.queue and host.busy < AT_ONCE:
            box = host.queue.popleft()
            host.busy += 1
            self.at(self.now + self._start_s * self._random.uniform(0.7, 1.3), lambda box=box: self._started(host, box))

    def _started(self, host: _Host, box: _Box) -> None:
        host.busy -= 1
        if host.gone:
            self._lost(box)
            return
        self.up[box.id] = box
        row = BoxRow(id=box.id, name="", account=box.owner, cpus=CPUS, memory=MEMORY, pids=PIDS, image="box")
        self._report(host, Report(put=[row], gone=[], load=_load(host.busy + len(host.queue))))
        settle = Settle(ticket=box.ticket)
        self.at(self.now + 2 * ONE_WAY_S, lambda: self.hub(settle, lambda: self.scheduler.settle(box.ticket)))
        if self._churning:
            self._live(box)
        self._next(host)

    def _report(self, host: _Host, report: Report) -> None:
        def work() -> None:
            for id in report.gone:
                self.scheduler.gone(id)
            for row in report.put:
                self.scheduler.put(host.name, row)
            self.scheduler.say(host.name, report.load)
            self.scheduler.dispatch()

        def heard() -> None:
            if host.name in self.scheduler.nodes:
                self.hub(report, work)

        self.at(self.now + ONE_WAY_S, heard)

    # -- what happens to many

    def churn(self) -> None:
        """From now on boxes end, and their owners want others."""
        self._churning = True
        for box in list(self.up.values()):
            self._live(box)

    def _live(self, box: _Box) -> None:
        self.at(self.now + self._random.expovariate(1 / LIFE_S), lambda: self._end(box))

    def _end(self, box: _Box) -> None:
        if self.up.pop(box.id, None) is None:
            return
        host = self.hosts[box.node]
        self._report(host, Report(put=[], gone=[box.id], load=_load(host.busy + len(host.queue))))
        self.ask(box.owner)

    def lose(self, names: list[str]) -> None:
        """These nodes fall silent: the hub and the owners know it SUSPECT_S later."""
        for name in names:
            host = self.hosts[name]
            host.gone = True
            waiting, host.queue = list(host.queue), deque()
            held = [box for box in self.up.values() if box.node == name]
            for box in held:
                del self.up[box.id]
            self.at(self.now + SUSPECT_S, lambda name=name: self.scheduler.leave(name))
            for box in held + waiting:
                self.at(self.now + SUSPECT_S, lambda box=box: self._lost(box))

    def _lost(self, box: _Box) -> None:
        if box.ticket:
            self.scheduler.settle(box.ticket)
        self.ask(box.owner)

    def taken(self) -> list[float]:
        costs, self.costs = self.costs, []
        return costs


def _load(busy: int) -> Load:
    return Load(room=1900, limit=AT_ONCE, busy=busy)


async def run(nodes: int = 200, boxes: int = 10_000, rate: float = STARTS_PER_S) -> dict[str, Any]:
    """Some seconds of real time. UsageError where the boxes do not fit."""
    fit = int(min(NODE_CPUS * 32 / CPUS, NODE_MEMORY / MEMORY, NODE_PIDS / PIDS))
    lost = max(1, round(nodes * LOST))
    if nodes < 2 or boxes < 1 or rate <= 0 or boxes > (nodes - lost) * fit:
        raise UsageError(
            f"nodes, boxes, rate: at least 2, 1 and more than 0, and no more than {fit} boxes on each of the nodes that"
            f" are left when {lost} are lost; got {nodes}, {boxes} and {rate:g}"
        )
    world = _World(nodes, rate)
    for number in range(boxes):
        world.ask(f"owner-{number % OWNERS}")
    world.run(lambda: len(world.up) >= boxes)
    up_s, free, storm, busy = world.now, world.free, world.taken(), world.spent
    spread = [0] * nodes
    for box in world.up.values():
        spread[int(box.node.removeprefix("node-"))] += 1

    world.churn()
    begun, before = world.now, world.spent
    world.run(lambda: world.now >= begun + CHURN_S)
    alive = world.taken()
    churn_busy, churn_s = world.spent - before, world.now - begun
    placed = churn_s * boxes / LIFE_S

    world.lose([f"node-{i:04d}" for i in range(lost)])
    begun, missing = world.now, boxes - len(world.up)
    world.run(lambda: len(world.up) >= boxes - placed * 0.02 and world.now > begun + SUSPECT_S)
    floor_s = boxes / (nodes * rate)
    return {
        "figures": {
            "up_s": up_s,
            "up_per_s": boxes / up_s,
            "fullest_node_boxes": max(spread),
            "emptiest_node_boxes": min(spread),
            "storm_scheduling_ms_per_box": sum(storm) / boxes * 1000,
            "storm_hub_busy": busy / max(up_s, free),
            "alive_scheduling_ms_per_box": sum(alive) / placed * 1000,
            "alive_message_p99_ms": statistics.quantiles(alive, n=100)[98] * 1000,
            "alive_hub_busy": churn_busy / churn_s,
            "alive_boxes_per_s": placed / churn_s,
            "lost_boxes": missing,
            "replaced_after_s": world.now - begun,
        },
        "baselines": {"nodes_alone_up_s": floor_s, "nodes_alone_up_per_s": nodes * rate},
        "machine": {
            "nodes": nodes,
            "boxes": boxes,
            "node_starts_per_s": rate,
            "one_way_ms": ONE_WAY_S * 1000,
            "frame_us": FRAME_S * 1e6,
        },
    }
