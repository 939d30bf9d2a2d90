"""Where weights lie between the trainer, which writes them, and the engines, which read them.

In: where each of them stands, how large the weights are, what this host has free. Out: a `Way`, and the folder for it,
which is gone with the run, also with one that was killed. Leaves writing and reading the folder to
train/export.py and the engines, and what is proved of a delivery to controller/delivery.py.

    trainer and engines              way
    on one host                      memory    a folder in /dev/shm: written once, mapped by every engine, no disk
    on one host, memory is short     disk      the run directory
    on several hosts                 disk      the run directory, which all of them see

Nothing of it is the user's to choose: placement knows.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from rockroll import home, units
from rockroll.available import available

_log = logging.getLogger(__name__)
Way = Literal["memory", "disk"]
SHARED_MEMORY = Path("/dev/shm")
COPIES = 2
"""The new weights are whole before the old ones go."""
SPARE = 2
"""So many times as much must be available as they take: the run's processes still grow."""


def way(trainer: str, engines: Iterable[str], *, size: int, free: int, available: int) -> Way:
    """How weights travel.

    trainer, engines: the hosts that they are on. size: bytes of one set of weights. free: bytes left in /dev/shm, 0
    where there is none. available: bytes of memory that processes can still take, of which /dev/shm is made.
    """
    if any(host != trainer for host in engines):
        return "disk"
    fits = free >= COPIES * size and available >= SPARE * COPIES * size
    return "memory" if fits else "disk"


class Shelf:
    """A folder in /dev/shm that goes with this process: `folder` inside a `with`.

    A killed run cannot remove its own. A lock that the kernel lets go with its process says whose run is over; the next
    run clears up, whichever process ids there are then and in whichever namespace.
    """

    def __init__(self, root: Path = SHARED_MEMORY) -> None:
        self._root = root

    def __enter__(self) -> Path:
        prefix = f"rockroll-{home.home_id()}-"
        for left in self._root.glob(f"{prefix}*"):
            _remove_where_over(left)
        while True:
            self._made = Path(tempfile.mkdtemp(prefix=prefix, dir=self._root))
            self._lock = os.open(self._made / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if (self._made / "lock").exists():
                return self._made / "weights"
            os.close(self._lock)  # between its making and its lock another run took it for a dead one's

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._made, ignore_errors=True)
        os.close(self._lock)


@contextlib.contextmanager
def folder(run: Path, size: int, trainer: str = "", engines: Iterable[str] = ("",)) -> Iterator[Path]:
    """The folder through which this run's weights go: in memory, or `run`.

    run: the folder on a disk. size: bytes of the weights. trainer, engines: hosts, "" for this one.
    """
    chosen = way(trainer, engines, size=size, free=shared_memory_free(), available=available())
    _log.info("weights of %s go by %s", units.show_size(size), chosen)
    if chosen == "disk":
        yield run
        return
    with Shelf() as made:
        yield made


def shared_memory_free(root: Path = SHARED_MEMORY) -> int:
    """Bytes left in /dev/shm; 0 where it is not there or not to be written."""
    if not os.access(root, os.W_OK):
        return 0
    found = os.statvfs(root)
    return found.f_bavail * found.f_frsize


def _remove_where_over(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another run is quicker, or has only just made it
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)
