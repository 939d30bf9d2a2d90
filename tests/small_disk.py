"""A disk of a few megabytes: a tmpfs that a test fills, and makes larger."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, size: int) -> None:
        """To so many bytes; it may hold more than that already: then nothing can be added."""
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True)

    def leave(self, free: int) -> None:
        """So many bytes of room, by a file that takes the rest."""
        self.room()
        have = os.statvfs(self.path)
        with (self.path / "filler").open("wb") as file:
            file.write(b"\0" * max(0, have.f_bavail * have.f_frsize - free))

    def room(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Of 16 MiB. Needs root, and a kernel that lets it mount."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", str(path)], capture_output=True)
    if made.returncode:
        pytest.skip("no tmpfs can be mounted here: not root?")
    yield SmallDisk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)
