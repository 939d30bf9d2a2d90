"""Which replica gets a request.

In: prompts, what was sent where and has ended, and what the replicas report. Out: a replica's number, or None where
all have as much as they can decode together. Pure: no clock, no tasks. Leaves sending, waiting and health to pool.py.

A replica computes a prompt's beginning only once, so a request goes where most of it is known; but not to a replica
that has much more to do than the idlest, or one task's shared beginning would draw all requests to one replica.
"""

from __future__ import annotations

from collections import OrderedDict

from rockroll.engine.api import Stats

BLOCK = 32
"""Tokens by which beginnings are compared: fewer are computed as fast as they are routed."""
KNOWN_BLOCKS = 1 << 16
"""Blocks that are remembered, some 2 million tokens; the longest unused are forgotten first."""
_KV_FULL = 0.95


class Prefixes:
    """Which replica was sent which beginnings, block by block. A hint: nothing breaks where it is wrong."""

    def __init__(self, most: int = KNOWN_BLOCKS) -> None:
        self._most = most
        self._known: OrderedDict[int, int] = (
            OrderedDict()
        )  # a beginning's hash: the replicas that know it, one bit each

    def add(self, replica: int, ids: list[int]) -> None:
        bit = 1 << replica
        for key in reversed(_beginnings(ids)):  # a later block without those before it would be of no use
            self._known[key] = self._known.pop(key, 0) | bit
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def shared(self, ids: list[int]) -> dict[int, int]:
        """How many of the first tokens each replica knows; one that knows none is left out."""
        found: dict[int, int] = {}
        among, length = -1, 0
        for key in _beginnings(ids):
            among &= self._known.get(key, 0)
            if not among:
                break
            length += BLOCK
            rest = among
            while rest:
                bit = rest & -rest
                found[bit.bit_length() - 1] = length
                rest ^= bit
        return found

    def forget(self, replica: int) -> None:
        bit = 1 << replica
        self._known = OrderedDict((key, left) for key, bits in self._known.items() if (left := bits & ~bit))

    def clear(self) -> None:
        self._known.clear()

    def __len__(self) -> int:
        return len(self._known)


def _beginnings(ids: list[int]) -> list[int]:
    """A hash of the first block, of the first two, and so on; what is left over does not count."""
    keys: list[int] = []
    key = 0
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        key = hash((key, *ids[start : start + BLOCK]))
        keys.append(key)
    return keys


class _Load:
    def __init__(self) -> None:
        self.requests, self.tokens = 0, 0
        self.stats: Stats | None = None
        self.full = False
        """Some wait for memory."""
        self._preempting = False
        """Since a request was preempted, until none waits: what it gave back would let in the next one to preempt."""

    def reported(self, stats: Stats) -> None:
        preempted = self.stats is not None and stats.preemptions > self.stats.preemptions
        self._preempting = stats.waiting > 0 and (self._preempting or preempted)
        self.full = self._preempting or (stats.waiting > 0 and stats.kv_use >= _KV_FULL)
        self.stats = stats

    @property
    def most(self) -> int | None:
        """Requests it can have at once: what it decodes together, fewer where its memory is full; None: not known."""
        stats = self.stats
        if stats is None:
            return None
        return max(stats.running, 1) if self.full else stats.slots

    @property
    def room(self) -> bool:
        return self.most is None or self.requests < self.most


class Routes:
    """The replicas that serve, and what each has to do.

    add ──► begun / ended, reported … ──► remove     requests of one that was removed may still `end`: nothing happens
    """

    def __init__(self, known_blocks: int = KNOWN_BLOCKS) -> None:
        self._prefixes = Prefixes(known_blocks)
        self._loads: dict[int, _Load] = {}

    @property
    def replicas(self) -> list[int]:
        return sorted(self._loads)

    def add(self, replica: int) -> None:
        """It serves from now on, and knows nothing yet."""
        self._prefixes.forget(replica)
        self._loads[replica] = _Load()

    def remove(self, replica: int) -> None:
        self._loads.pop(replica, None)

    def reported(self, replica: int, stats: Stats) -> None:
        if (load := self._loads.get(replica)) is not None:
            load.reported(stats)

    def stats(self, replica: int) -> Stats | None:
        """What it has said last; None: nothing yet."""
        load = self._loads.get(replica)
        return load.stats if load else None

    def weights_changed(self) -> None:
        """What was computed with the weights before is of no use any more."""
        self._prefixes.clear()

    def choose(self, ids: list[int]) -> int | None:
        """The replica with room that knows the longest beginning of `ids`, of those equal in that the one with least
        to do. None where none has room; where there is one replica only, its own queue is as good as ours."""
        if len(self._loads) <= 1:
            return next(iter(self._loads), None)
        with_room = {replica: load for replica, load in self._loads.items() if load.room}
        if not with_room:
            return None
        idlest = min(load.requests for load in with_room.values())
        # as many more as it takes to be half as busy again; a few requests are no imbalance
        among = {replica: load for replica, load in with_room.items() if load.requests <= idlest * 3 // 2 + 4}
        shared = self._prefixes.shared(ids)
        return min(among, key=lambda r: (-shared.get(r, 0), among[r].requests, among[r].tokens, r))

    def begun(self, replica: int, ids: list[int]) -> None:
        load = self._loads[replica]
        load.requests += 1
        load.tokens += len(ids)
        if len(self._loads) > 1:
            self._prefixes.add(replica, ids)

    def ended(self, replica: int, ids: list[int], answer: list[int]) -> None:
        """answer: with the prompt it is the beginning of the next turn's prompt."""
        if (load := self._loads.get(replica)) is not None:
            load.requests = max(load.requests - 1, 0)
            load.tokens = max(load.tokens - len(ids), 0)
            if answer and len(self._loads) > 1:
                self._prefixes.add(replica, ids + answer)

    def under_way(self, replica: int) -> int:
        load = self._loads.get(replica)
        return load.requests if load else 0
