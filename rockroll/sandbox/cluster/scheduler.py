"""Which node a box is placed on.

In: nodes with what they have and hold, wants, and what becomes of them. Out: a node's name for a want, now or when
there is room. Pure: leaves clocks, links and who is heard to the hub.

    want ──► fits somewhere? ── yes ──► ticket: counts on that node until `settle`, from when on its box does
                 └── no ──► wait: the owner with the least of the cluster is next when there is room
                            else: NoRoom, with the reason of each node

A node may be granted `ratio` times its CPUs; its memory and pids never more than it has said. Among nodes that fit, one
with a warm box of the kind is taken first, then one that has the image, then one that can start it at once; after that
the emptiest (spread) or the fullest (pack), by the resource of which it has least left.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

from rockroll import units
from rockroll.errors import NoRoom, UsageError
from rockroll.sandbox.cluster.sources import names_of
from rockroll.sandbox.cluster.wire import BoxRow, Load, NodeState, Want

Policy = Literal["spread", "pack"]


class Node:
    """One node's share of the arithmetic."""

    def __init__(self, name: str, cpus: float, memory: int, pids: int, ratio: float) -> None:
        self.name, self.state = name, "up"
        self.state: NodeState
        self.most = (cpus * ratio, float(memory), float(pids))
        self.used = (0.0, 0.0, 0.0)
        """Granted to boxes there are and to tickets."""
        self.load = Load(room=1 << 30, limit=1, busy=0)
        self.images: set[str] = set()
        self.warm: dict[str, int] = {}
        self.boxes = 0
        self.tickets = 0
        self.since = 0
        """Tickets given since the node said how it is."""

    def share(self, more: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> float:
        """The part that is granted of what it has least left of, 1 full."""
        used, most = self.used, self.most
        return max(
            (used[0] + more[0]) / most[0], (used[1] + more[1]) / most[1], (used[2] + more[2]) / most[2]
        )  # fmt: skip

    def refusal(self, want: Want) -> str | None:
        """Why it cannot have that box; None: it can."""
        if self.state != "up":
            return f"{self.name} is {self.state}"
        if want.only is not None and self.name not in want.only:
            return f"{self.name} does not have what it begins with"
        if self.name in want.without:
            return f"{self.name} has refused it"
        used, most = self.used, self.most
        if used[1] + want.memory > most[1]:
            return f"{self.name} has {units.show_size(max(0, int(most[1] - used[1])))} of memory left"
        if used[0] + want.cpus > most[0] * (1 + 1e-9):
            return f"{self.name} has {max(0.0, most[0] - used[0]):g} CPUs left"
        if used[2] + want.pids > most[2]:
            return f"{self.name} has {max(0, int(most[2] - used[2]))} pids left"
        if self.load.room <= self.since and self.warm.get(want.kind, 0) <= 0:
            return f"{self.name}'s host has no room left"
        return None


class Ask:
    """A want that waits. done: called with the node and the ticket."""

    def __init__(self, want: Want, done: Callable[[Node, int], None]) -> None:
        self.want, self.done, self.dropped = want, done, False


class Scheduler:
    """ratio: CPUs that may be granted for each that a node has."""

    def __init__(self, policy: Policy = "spread", ratio: float = 32.0) -> None:
        if ratio <= 0:
            raise UsageError(f"overcommit: more than 0 CPUs for each there is; got {ratio:g}")
        self.policy: Policy = policy
        self.ratio = ratio
        self.nodes: dict[str, Node] = {}
        self._boxes: dict[str, tuple[str, BoxRow]] = {}
        self._named: dict[str, dict[str, None]] = {}
        """Name → ids of boxes: nodes keep names apart, a cluster need not."""
        self._tickets: dict[int, tuple[str, Want]] = {}
        self._numbers = itertools.count(1)
        self._owners: dict[str, tuple[float, float, float]] = {}
        self._waiting: dict[str, deque[Ask]] = {}

    # -- nodes

    def join(self, name: str, cpus: float, memory: int, pids: int, images: Iterable[str], load: Load) -> Node:
        """A node, which holds nothing yet; one of that name is forgotten."""
        self.leave(name)
        node = self.nodes[name] = Node(name, cpus, memory, pids, self.ratio)
        node.images.update(images)
        self.say(name, load)
        return node

    def leave(self, name: str) -> None:
        """A node is gone, and its boxes with it. Tickets on it are settled by those who hold them."""
        if self.nodes.pop(name, None) is None:
            return
        for id in [id for id, (at, _) in self._boxes.items() if at == name]:
            self.gone(id)

    def say(self, name: str, load: Load) -> None:
        """How a node is now."""
        node = self.nodes[name]
        node.load, node.warm, node.since = load, dict(load.warm), node.tickets

    def mark(self, name: str, state: NodeState) -> None:
        self.nodes[name].state = state
        self.dispatch()

    # -- boxes

    def put(self, name: str, row: BoxRow) -> None:
        """A box that this node holds, as it is now."""
        self.gone(row.id)
        self._boxes[row.id] = name, row
        self._named.setdefault(row.name, {})[row.id] = None
        node = self.nodes[name]
        node.boxes += 1
        node.images.add(row.image)
        self._count(node, row.account, row.cpus, row.memory, row.pids)

    def gone(self, id: str) -> None:
        """A box that there is not any more."""
        if (known := self._boxes.pop(id, None)) is None:
            return
        name, row = known
        named = self._named[row.name]
        del named[id]
        if not named:
            del self._named[row.name]
        node = self.nodes.get(name)
        if node is not None:
            node.boxes -= 1
        self._count(node, row.account, -row.cpus, -row.memory, -row.pids)

    def _count(self, node: Node | None, owner: str, cpus: float, memory: float, pids: float) -> None:
        if node is not None:
            used = node.used
            node.used = used[0] + cpus, used[1] + memory, used[2] + pids
        mine = self._owners.get(owner, (0.0, 0.0, 0.0))
        now = mine[0] + cpus, mine[1] + memory, mine[2] + pids
        if now[2] > 0:
            self._owners[owner] = now
        else:
            self._owners.pop(owner, None)

    def where(self, id: str) -> str | None:
        """The node of a box: by id, by name, or by a beginning of its id that no other has."""
        if (known := self._boxes.get(id)) is not None:
            return known[0]
        named = [self._boxes[full][0] for full in self._named.get(id, ())]
        found = named or [at for full, (at, _) in self._boxes.items() if id and full.startswith(id)]
        return found[0] if len(found) == 1 else None

    def boxes_of(self, name: str) -> list[str]:
        return [id for id, (at, _) in self._boxes.items() if at == name]

    # -- placing

    def place(self, want: Want) -> tuple[Node, int]:
        """The node and a ticket. NoRoom, with the reason of each node."""
        node = self._best(want)
        if node is None:
            raise self._refusal(want)
        return node, self._ticket(node, want)

    def ask(self, want: Want, done: Callable[[Node, int], None]) -> Ask:
        """`done` is called when there is room, which may be now. The owner with the least share is served first, one's
        own in order."""
        ask = Ask(want, done)
        self._waiting.setdefault(want.owner, deque()).append(ask)
        self.dispatch()
        return ask

    def drop(self, ask: Ask) -> None:
        """Nobody waits for it any more."""
        ask.dropped = True

    def settle(self, ticket: int) -> None:
        """Its box is there, or will never be. A second time nothing happens."""
        if (known := self._tickets.pop(ticket, None)) is None:
            return
        name, want = known
        node = self.nodes.get(name)
        if node is not None:
            node.tickets -= 1
        self._count(node, want.owner, -want.cpus, -want.memory, -want.pids)
        self.dispatch()

    @property
    def waiting(self) -> int:
        """Wants that wait for room."""
        return sum(not ask.dropped for asks in self._waiting.values() for ask in asks)

    def dispatch(self) -> None:
        """There may be room now."""
        stuck: set[str] = set()
        while owners := [owner for owner in self._waiting if owner not in stuck]:
            owner = min(owners, key=self.share)
            asks = self._waiting[owner]
            while asks and asks[0].dropped:
                asks.popleft()
            if not asks:
                del self._waiting[owner]
            elif (node := self._best(asks[0].want)) is None:
                stuck.add(owner)
            else:
                ask = asks.popleft()
                ask.done(node, self._ticket(node, ask.want))

    def share(self, owner: str) -> float:
        """The part of the cluster that this owner has, of the resource that it has most of."""
        mine = self._owners.get(owner)
        if mine is None:
            return 0.0
        most = [sum(node.most[each] for node in self.nodes.values()) or 1.0 for each in range(3)]
        return max(mine[each] / most[each] for each in range(3))

    def _best(self, want: Want) -> Node | None:
        more, called = (want.cpus, float(want.memory), float(want.pids)), names_of(want.image)
        sign = 1.0 if self.policy == "spread" else -1.0
        best: Node | None = None
        least: tuple[bool, bool, bool, float, str] | None = None
        for node in self.nodes.values():
            if node.refusal(want) is not None:
                continue
            key = (
                node.warm.get(want.kind, 0) <= 0,
                node.images.isdisjoint(called),
                node.load.busy + node.tickets >= node.load.limit and self.policy == "spread",
                sign * node.share(more),
                node.name,
            )
            if least is None or key < least:
                best, least = node, key
        return best

    def _ticket(self, node: Node, want: Want) -> int:
        ticket = next(self._numbers)
        self._tickets[ticket] = node.name, want
        node.tickets += 1
        node.since += 1
        if node.warm.get(want.kind, 0) > 0:
            node.warm[want.kind] -= 1
        self._count(node, want.owner, want.cpus, want.memory, want.pids)
        return ticket

    def _refusal(self, want: Want) -> NoRoom:
        if not self.nodes:
            return NoRoom("no node has joined this cluster; on each machine run: rockroll node --hub FILE")
        why = [said for _, node in sorted(self.nodes.items()) if (said := node.refusal(want))]
        shown = "; ".join(why[:5]) + (f"; and {len(why) - 5} more" if len(why) > 5 else "")
        return NoRoom(
            f"no node of the cluster has room for a box of {want.cpus:g} CPUs, {units.show_size(want.memory)} and"
            f" {want.pids} pids: {shown}; delete some boxes, ask for less, or add a node"
        )
