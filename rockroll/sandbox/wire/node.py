"""The node itself: who it is, what it does now and has done.

In and out: plain values.
"""

from __future__ import annotations

from rockroll.sandbox.wire.base import Struct


class NodeInfo(Struct, frozen=True):
    node: str
    pid: int
    version: str
    sandboxes: int
    rootless: bool


class Took(Struct, frozen=True):
    """How long something took, in buckets."""

    bounds: tuple[float, ...]
    """Seconds; a bucket ends with each, the last one has no end."""
    counts: list[int]
    """One more than there are bounds."""
    sum_s: float
    failed: int
    """Of all, those that failed."""


class NodeMetrics(Struct, frozen=True):
    """What a node does now, and has done since its start."""

    node: str
    sandboxes: dict[str, int]
    """How many, by state; those of warm pools are in pool.list."""
    limit: int
    """How many starts and removals may be under way at once now: admission's."""
    running: int
    waiting: dict[str, int]
    """By owner."""
    took: dict[str, Took]
    """start, remove: in Podman; wait: before either."""
