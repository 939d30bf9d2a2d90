"""Who is next: owners in turn, whatever each of them has asked for.

In: items with an owner. Out: the item whose turn it is. Pure: it waits for nobody. Leaves how many may go at once to
aimd.py and the waiting to admission.py.

An owner with five hundred items and one with a single item alternate. Of one owner's items a removal goes before a
creation (it makes room), else the first that came. Background items, the refills of warm pools, go when nobody waits.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Literal, TypeVar

Rank = Literal["remove", "create", "background"]
_RANKS: dict[Rank, int] = {"remove": 0, "create": 1, "background": 2}
T = TypeVar("T", bound=Hashable)


class Turns(Generic[T]):
    """A queue of queues; every operation is O(log n) but `drop`, which is O(n of that owner)."""

    def __init__(self) -> None:
        self._people: OrderedDict[str, list[tuple[int, int, T]]] = OrderedDict()
        self._background: OrderedDict[str, list[tuple[int, int, T]]] = OrderedDict()
        self._order = itertools.count()

    def add(self, owner: str, item: T, rank: Rank = "create") -> None:
        """At the end of its owner's queue, before those of a later rank."""
        queues = self._background if rank == "background" else self._people
        heapq.heappush(queues.setdefault(owner, []), (_RANKS[rank], next(self._order), item))

    def next(self, *, background: bool = True) -> T | None:
        """Takes out the item whose turn it is; None where nobody waits. Its owner comes last from now on.

        background: whether one of these will do.
        """
        for queues in (self._people, self._background) if background else (self._people,):
            if queues:
                owner, queue = queues.popitem(last=False)
                item = heapq.heappop(queue)[2]
                if queue:
                    queues[owner] = queue
                return item
        return None

    def drop(self, owner: str, item: T) -> None:
        """Its caller waits no longer. Nothing where it is not here."""
        for queues in (self._people, self._background):
            queue = queues.get(owner, [])
            left = [entry for entry in queue if entry[2] is not item]
            if len(left) == len(queue):
                continue
            heapq.heapify(left)
            if left:
                queues[owner] = left
            else:
                del queues[owner]

    def waiting(self) -> dict[str, int]:
        """How many items each owner has here, background ones apart."""
        return {owner: len(queue) for owner, queue in self._people.items()}

    def __len__(self) -> int:
        return sum(map(len, (*self._people.values(), *self._background.values())))
