"""Warm pools: boxes that stand ready.

In and out: plain values. Leaves what each field of a config means to config.py.
"""

from __future__ import annotations

from typing import Any

from rockroll.sandbox.wire.base import Struct
from rockroll.sandbox.wire.boxes import Owner


class PoolSet(Struct, frozen=True):
    """A warm pool to make, or to change."""

    name: str
    size: int
    config: dict[str, Any] = {}
    """Fields of SandboxConfig but name, labels, ttl, idle_ttl and snapshot."""
    idle: str | float | None = "1h"
    """Given up when nobody took a box for this long; None: never."""
    owner: Owner = "detached"
    """A `connection` pool goes when the connection that made it ends."""


class PoolRef(Struct, frozen=True):
    name: str


class PoolInfo(Struct, frozen=True):
    name: str
    size: int
    ready: int
    """Boxes that can be had at once."""
    making: int
    taken: int
    """Boxes that somebody got from here."""
    missed: int
    """Calls that found none ready, and waited for one to be made."""
    image: str
    config: dict[str, Any]
    idle_s: float | None
    asleep: bool
    """Nobody took a box for `idle_s`: it is empty until somebody asks for one."""
    fault: str | None
    """Why the last box could not be made."""
    owner: Owner
    in_file: bool
    """Whether it is in node.yaml."""
