"""Where rockroll keeps things on a host.

In: the environment (ROCKROLL_HOME, XDG_RUNTIME_DIR). Out: paths, made on first use with mode 0700.
Leaves what is written there to the rooms that write it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def home() -> Path:
    """`$ROCKROLL_HOME`, or `~/.rockroll`."""
    return _made(Path(os.environ.get("ROCKROLL_HOME") or Path.home() / ".rockroll").absolute())


def home_id() -> str:
    """Eight hex digits that name this home: containers carry it as a label, so that two homes never meet."""
    return hashlib.sha256(f"{os.getuid()}:{home()}".encode()).hexdigest()[:8]


def node_dir() -> Path:
    """The node's spools, registry and log."""
    return _made(home() / "node")


def runtime_dir() -> Path:
    """A short path for sockets and FIFOs: a unix socket's path may have no more than 107 bytes."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or ("/run" if os.getuid() == 0 else "/tmp"))
    if not base.is_dir() or not os.access(base, os.W_OK):
        base = Path("/tmp")
    return _made(base / f"rockroll-{home_id()}")


def node_address() -> str:
    """The rpc address of this user's node on this host."""
    return f"unix://{runtime_dir() / 'node.sock'}"


def models_dir() -> Path:
    """Models made or converted at set-up."""
    return _made(home() / "models")


def runs_dir() -> Path:
    """The default place of run directories."""
    return _made(home() / "runs")


def _made(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
