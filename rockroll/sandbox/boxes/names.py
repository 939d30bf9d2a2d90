"""What one box is called on this host: its container, its folder, its files.

In: a box's id. Out: names and paths, the folder made. Leaves what is in them to those who write it.
"""

from __future__ import annotations

from pathlib import Path

from rockroll import home

INSIDE = "/dev/rr"
"""Where a box sees the folder of its sessions, read-only. /dev is a tmpfs: the mount point leaves no file behind.
Short, because bash reads what is typed to it one byte at a time, and every command names it five times."""


def container_name(sandbox_id: str) -> str:
    """What Podman calls it."""
    return f"rockroll-{home.home_id()}-{sandbox_id}"


def spool_path(sandbox_id: str) -> Path:
    """The file of a box's log."""
    folder = home.node_dir() / "spool"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{sandbox_id}.log"


def environment_path(sandbox_id: str) -> Path:
    """The file of a box's changed variables."""
    return spool_path(sandbox_id).with_suffix(".env")


def folder_of(sandbox_id: str) -> Path:
    """A box's own folder: `s` is what it sees as INSIDE, `x` is the runtime's short-lived files."""
    return home.runtime_dir() / "b" / sandbox_id


def make_folder(sandbox_id: str) -> Path:
    """Makes it; the path of `s`, for the mount."""
    folder = folder_of(sandbox_id)
    for path in (folder.parent, folder, folder / "x", folder / "s"):
        path.mkdir(mode=0o700, exist_ok=True)
    # The box's user passes through but lists nothing; each session's folder in it is that user's own.
    (folder / "s").chmod(0o711)
    return folder / "s"
