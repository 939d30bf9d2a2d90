"""Files of the host that each box reads or writes at every command, without a descriptor a file a box.

In: a path. Out: `fd()`, an open descriptor: the one from before, or a new one. Leaves reading and writing to its user.

A box with a session has nine such files beside nine that must stay open, and a node's descriptors have a hard limit
(1,900 boxes of eighteen are 34,000). So only the KEPT that were used last stay open; one that was closed is opened
again when needed: some microseconds.
For the event loop's thread only: between `fd()` and its use nothing else may run.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

KEPT = 1024
"""Enough for a hundred busy sessions to open nothing."""


class KeptFile:
    """One file by its path. `close` for good; until then `fd` opens it as often as that is needed."""

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        """The file is opened now, with O_CREAT in flags made. OSError as of os.open, here and in `fd`."""
        self._path: str | None = str(path)
        self._fd = -1
        self._flags = flags | os.O_CLOEXEC | os.O_NOFOLLOW
        self.fd()
        self._flags &= ~os.O_CREAT  # whoever has removed it meanwhile meant it

    def fd(self) -> int:
        """An open descriptor, good until the next `fd` of any file."""
        if self._fd >= 0:
            _open.move_to_end(self)
            return self._fd
        if self._path is None:
            raise OSError("the file is closed")
        self._fd = os.open(self._path, self._flags, 0o600)
        _open[self] = None
        if len(_open) > KEPT:
            _open.popitem(last=False)[0]._let_go()
        return self._fd

    @property
    def closed(self) -> bool:
        return self._path is None

    def close(self) -> None:
        """For good."""
        self._path = None
        if _open.pop(self, self) is None:
            self._let_go()

    def _let_go(self) -> None:
        os.close(self._fd)
        self._fd = -1


_open: OrderedDict[KeptFile, None] = OrderedDict()
"""Those that are open, the one used last at the end."""
