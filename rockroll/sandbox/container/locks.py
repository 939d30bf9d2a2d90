"""Podman's locks: one for each container, volume and pod of this host, and no more than were made at the first start.

In: the host's containers.conf files and the shared memory that holds the locks. Out: how many there are, how many are
taken. Leaves writing rockroll's own containers.conf to runtime.py, and refusing a box to limits.py.

The number belongs to the host, not to rockroll: root's Podman and rockroll's share a store, and a Podman that asks for
another number than the memory has refuses to run ("numerical result out of range"). So rockroll follows the number that
is there; where a host has none yet, what its own files will ask for. An ordinary user's store of rockroll's own uses
files, without a limit.
"""

from __future__ import annotations

import struct
import tomllib
from pathlib import Path
from typing import NamedTuple

MEMORY = Path("/dev/shm/libpod_lock")
FILES = (
    Path("/usr/share/containers/containers.conf"),
    Path("/etc/containers/containers.conf"),
    *sorted(Path("/etc/containers/containers.conf.d").glob("*.conf")),
)
"""What the host's own Podman reads, the last word last."""
DEFAULT = 2048
RAISED = 16384
"""What the cure and scripts/setup write: room for the pids and the memory of any host to bind first; 0.6 MB."""
CURE = (
    f"as root write `[engine]` and `num_locks = {RAISED}` to /etc/containers/containers.conf.d/rockroll.conf, remove"
    " every container, run `podman system renumber`, then `rockroll doctor`"
)
_MAGIC = 0x87D1
_GROUP = 32
"""Locks in a group: a bitmap and that many mutexes."""


class Locks(NamedTuple):
    total: int
    taken: int


def wanted(files: tuple[Path, ...] = FILES, memory: Path = MEMORY) -> int:
    """What num_locks must be in rockroll's containers.conf for Podman to run."""
    if there := read(memory):
        return there.total
    found = DEFAULT
    for path in files:
        try:
            found = int(tomllib.loads(path.read_text()).get("engine", {}).get("num_locks", found))
        except (OSError, ValueError, AttributeError, TypeError):
            continue  # Podman itself will say what is wrong with that file
    return found


def read(memory: Path = MEMORY) -> Locks | None:
    """The locks that there are; None where there are none yet, or in a form that this does not know."""
    try:
        data = memory.read_bytes()
    except OSError:
        return None
    # magic, a mutex, the number of groups and of locks; then the groups. A mutex takes 40 bytes, 48 on some machines.
    for mutex in (40, 48):
        head, group = 8 + mutex + 8, 8 + _GROUP * mutex
        if len(data) < head or struct.unpack_from("<H", data)[0] != _MAGIC:
            return None
        groups, total = struct.unpack_from("<II", data, head - 8)
        if total == groups * _GROUP and len(data) == head + groups * group:
            taken = sum(struct.unpack_from("<I", data, head + n * group)[0].bit_count() for n in range(groups))
            return Locks(total, taken)
    return None
