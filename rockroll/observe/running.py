"""Which episodes are at work in which sandboxes, now.

In: an episode's beginning in its sandbox, and its end. Out: a small file RUN_DIR/running/EPISODE.json while it runs,
for `rockroll debug RUN_DIR/EPISODE` and `rockroll view`. Leaves what came of it to record.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

FOLDER = "running"


class Running:
    """The episodes of one run that are in sandboxes. There are as many files as episodes at work."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / FOLDER
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.iterdir():  # of a run that was killed
            left.unlink()

    def began(self, id: str, what: Any) -> None:
        """what: a Struct or dict with at least `sandbox` and `node`."""
        (self.folder / f"{id}.json").write_bytes(msgspec.json.encode(what))

    def ended(self, id: str) -> None:
        """Whether it had begun or not."""
        (self.folder / f"{id}.json").unlink(missing_ok=True)


def running(run_dir: Path) -> list[dict[str, Any]]:
    """What `began` was told of the episodes at work, the oldest first."""
    found = []
    for file in (run_dir / FOLDER).glob("*.json"):
        if (said := read(run_dir, file.stem)) is not None:
            found.append(said)
    return sorted(found, key=lambda each: each.get("began_at", 0.0))


def read(run_dir: Path, id: str) -> dict[str, Any] | None:
    """The same for one episode; None where it is not at work."""
    if "/" in id:
        return None
    try:
        return msgspec.json.decode((run_dir / FOLDER / f"{id}.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):  # it ended, or is being written
        return None
