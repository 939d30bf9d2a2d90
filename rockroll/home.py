"""Where rockroll keeps things on a host.

In: the environment (ROCKROLL_HOME, XDG_RUNTIME_DIR). Out: paths, made on first use with mode 0700.
Leaves what is written there to the rooms that write it.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from rockroll.errors import HostError


def home() -> Path:
    """`$ROCKROLL_HOME`, or `~/.rockroll`."""
    given = os.environ.get("ROCKROLL_HOME")
    return made(_path(given) if given and given[0] == "/" else Path(given or Path.home() / ".rockroll").absolute())


def home_id() -> str:
    """Eight hex digits that name this home: containers carry it as a label, so that two homes never meet."""
    return _id_of(home())


def node_dir() -> Path:
    """The node's spools, registry and log."""
    return made(home() / "node")


def node_name() -> str:
    """What this home's node is called: as it joined a cluster (placement/member.py), else the host's name."""
    return os.environ.get("ROCKROLL_NODE_NAME") or os.uname().nodename


def user_id() -> int:
    """The user's uid on the host, also inside `podman unshare`, where os.getuid() is 0: both ends of a socket agree."""
    return int(os.environ.get("_CONTAINERS_ROOTLESS_UID") or os.getuid())


def user_runtime_dir() -> Path:
    """XDG_RUNTIME_DIR where it can be written, else what Podman falls back to, so that all agree on one place."""
    places = [os.environ.get("XDG_RUNTIME_DIR"), "/run" if user_id() == 0 else f"/run/user/{user_id()}"]
    for place in places:
        if place and os.path.isdir(place) and os.access(place, os.W_OK):  # noqa: PTH112 - as in `made`
            return _path(place)
    path = made(Path(f"/tmp/podman-run-{user_id()}"))
    if path.stat().st_uid != os.getuid() or path.is_symlink():
        raise HostError(f"{path} belongs to somebody else; set XDG_RUNTIME_DIR to a directory of your own")
    return path


def runtime_dir() -> Path:
    """A short path for sockets and FIFOs: a unix socket's path may have no more than 107 bytes."""
    return made(runtime_dir_of(home()))


def runtime_dir_of(path: Path) -> Path:
    """That of another home of this user; it is not made."""
    return user_runtime_dir() / f"rockroll-{_id_of(path)}"


def node_address() -> str:
    """The rpc address of this user's node on this host."""
    return f"unix://{runtime_dir() / 'node.sock'}"


def models_dir() -> Path:
    """Models made or converted at set-up."""
    return made(home() / "models")


def runs_dir() -> Path:
    """The default place of run directories."""
    return made(home() / "runs")


@functools.lru_cache(maxsize=16)
def _path(text: str) -> Path:
    return Path(text)


@functools.lru_cache(maxsize=16)
def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _id_of(path: Path) -> str:
    return _short_hash(f"{user_id()}:{path}")


def made(path: Path) -> Path:
    """The folder, made where it is missing, for this user alone."""
    if not os.path.isdir(path):  # noqa: PTH112 - asked some twenty times for each box: a fifth of what Path takes
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
