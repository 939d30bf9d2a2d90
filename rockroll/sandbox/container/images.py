"""What an image's name means now, without asking Podman each time.

In: a name. Out: the image's id. Leaves images themselves to image.py. Podman rewrites one file whenever an image comes,
goes or is renamed: only then it is asked again.
"""

from __future__ import annotations

import os
from pathlib import Path

from rockroll.sandbox.container.podman import Podman


class Images:
    """store: Podman's folder."""

    def __init__(self, podman: Podman, store: Path) -> None:
        self._podman = podman
        self._file = store / "overlay-images" / "images.json"
        self._stamp: tuple[int, int] | None = None
        self._told: tuple[int, int] | None = None
        self._known: dict[str, str] = {}

    async def current(self, name: str) -> str:
        """Raises ImageMissing."""
        stamp = self._look()
        if stamp is None or stamp != self._stamp:
            self._known.clear()
            self._stamp = stamp
        if name not in self._known:
            found = str((await self._podman.image_inspect(name))["Id"])
            if self._look() != stamp or stamp is None:  # it may have changed while we asked
                return found
            self._known[name] = found
        return self._known[name]

    def changed(self) -> bool:
        """Whether the store has changed since this was asked; True at first, False where it does not show."""
        before, self._told = self._told, self._look()
        return before != self._told

    def _look(self) -> tuple[int, int] | None:
        """None where this store has no such file."""
        try:
            found = os.stat(self._file)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino
