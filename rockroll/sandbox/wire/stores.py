"""Snapshots and images: what a box begins with, and how one comes from another node.

In and out: plain values. Leaves how files are packed to container/parcel.py.
"""

from __future__ import annotations

from typing import Any

from rockroll.sandbox.wire.base import Struct


class Snapshot(Struct, frozen=True):
    id: str
    name: str


class SnapshotRef(Struct, frozen=True):
    name: str


MOVED = "moved-"
"""Begins the name of a snapshot by which a fork goes to another node."""


class SnapshotInfo(Struct, frozen=True):
    name: str
    image: str
    image_id: str
    """What the files stand on, however its name moves."""
    created: float
    """Unix time in seconds."""
    sandbox: str
    """The id of the box that it was taken of."""
    config: dict[str, Any]
    """That box's SandboxConfig."""
    first_id: int
    """The host's id of the box's root: on disk, all owners are counted from it."""
    size_bytes: int = 0
    nodes: list[str] = []
    """Of a cluster, those that have it."""


class Bring(Struct, frozen=True):
    """A snapshot that this node is to have."""

    name: str
    nodes: list[str]
    """Of the cluster, that have it."""


class ImageRef(Struct, frozen=True):
    name: str


class Parcel(Struct, frozen=True):
    """An item of snapshot.read and image.read: at first what it is, then its bytes, at last their BLAKE2b."""

    snapshot: SnapshotInfo | None = None
    tree: str = ""
    """Digest of the files as they lie there (container/parcel.py)."""
    image_id: str = ""
    data: bytes = b""
    digest: str = ""
