"""Sandboxes: making, finding, ending and bringing them back; what one is and uses.

In and out: plain values. Leaves what runs in a box to commands.py and inside.py.
"""

from __future__ import annotations

from typing import Any, Literal

from rockroll.sandbox.wire.base import Struct

State = Literal["starting", "running", "paused", "stopped", "exited", "gone"]
"""`stopped`: somebody asked for it. `exited`: init died by itself or was killed. `gone`: removed; only its story is
kept."""

Cause = Literal["oom", "killed", "runtime_crash", "node_lost", "ttl", "owner_gone", "exited", "deleted"]
"""Why a sandbox died or went (lifecycle.py): apart from how a call in it ended."""

Owner = Literal["connection", "detached"]


class Create(Struct, frozen=True):
    config: dict[str, Any]
    """The fields of SandboxConfig (`dataclasses.asdict`); what is left out takes its default."""
    owner: Owner = "connection"
    """A `connection` sandbox is deleted when the connection that made it ends."""
    key: str = ""
    """A word of the caller's own that no other call has. The sandbox is found by it as by its id: what a caller that
    never got the reply can delete."""


class List(Struct, frozen=True):
    """Which sandboxes to list; every condition given must hold."""

    all: bool = False
    """Those that are gone too: the last 1,000."""
    labels: dict[str, str] = {}
    state: State | None = None


class SandboxInfo(Struct, frozen=True):
    id: str
    name: str
    state: State
    image: str
    node: str
    """The host's name."""
    created: float
    """Unix time in seconds."""
    owner: Owner = "connection"
    labels: dict[str, str] = {}
    unenforced: list[str] = []
    """What this host cannot enforce: limit names, and "kill-scope" where processes are found without a cgroup."""
    env: dict[str, str] = {}
    """Environment of every session and execute."""
    cause: Cause | None = None
    """How it ended, once it has."""
    ended: float | None = None
    """When, in Unix time."""


class Fork(Struct, frozen=True):
    id: str
    name: str | None = None
    """None draws one."""
    owner: Owner | None = None
    """None: as the origin's."""
    key: str = ""
    """As in Create."""


class Stats(Struct, frozen=True):
    cpu_s: float
    memory_bytes: int
    memory_limit: int
    """0: none."""
    pids: int
    pids_limit: int
    """0: none."""
    oom_kills: int
    disk_bytes: int
    """Bytes in the writable layer."""
    disk_limit: int = 0
    """0: none."""


class Recycled(Struct, frozen=True):
    ok: bool
    reason: str = ""
    """Why it could not be made new again; the sandbox has then been destroyed."""


class Restore(Struct, frozen=True):
    id: str
    restart: bool = False
    """Stops it first where it runs."""


class Restored(Struct, frozen=True):
    info: SandboxInfo
    cause: Cause | None
    """How it had ended; None where somebody stopped it, or it ran on."""
    sessions: list[str] = []
    """They come back at their next command, with folder, variables, functions, aliases and options."""
    lost: list[str] = []
    """What cannot come back, in words; [] where it ran on."""
