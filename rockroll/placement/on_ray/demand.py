"""How much Ray's autoscaler is asked to have, so that sandboxes that wait get their nodes.

In: the nodes that there are, what each has left for sandboxes, what waits. Out: bundles for Ray's request_resources,
which states what the cluster is to have in all. Pure: leaves asking to scaling.py, what a node costs to the autoscaler.

Sandboxes are not counted in Ray's CPUs (docs/cluster.md), so a request for theirs would be met by nodes that are full.
What is asked for is every node as it is, and more such nodes: as many as hold those that wait, at what the fullest
holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Sandboxes of one kind that somebody waits for."""

    count: int
    cpus: float
    memory: int
    """Bytes; of each."""


@dataclass(frozen=True, kw_only=True)
class Has:
    """A node of the cluster."""

    cpus: float
    memory: float
    """Bytes; what Ray counts."""
    gpus: float = 0.0
    head: bool = False
    boxes: int = 0
    """Sandboxes on it."""
    room: int = 0
    """More of the usual kind that its host can hold."""
    cpus_left: float = 0.0
    memory_left: int = 0
    """What the hub may still grant there."""

    @property
    def bundle(self) -> dict[str, float]:
        found = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: amount for name, amount in found.items() if amount}

    def takes(self, waits: Waits) -> bool:
        return self.room > 0 and self.cpus_left >= waits.cpus and self.memory_left >= waits.memory


def bundles(nodes: Sequence[Has], waiting: Sequence[Waits]) -> list[dict[str, float]]:
    """What the cluster is to have in all; []: nothing is asked for. What a node has room for only starts slowly."""
    short = sum(each.count for each in waiting if not any(node.takes(each) for node in nodes))
    if not short:
        return []
    workers = [node for node in nodes if not node.head] or list(nodes)
    model = min(workers, key=lambda node: (node.gpus, node.cpus, node.memory), default=None)
    if model is None:
        return []
    more = math.ceil(short / max([1, *(node.boxes for node in nodes)]))
    return [node.bundle for node in nodes if node.bundle] + [model.bundle] * more
