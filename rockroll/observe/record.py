"""One record an episode, kept for people and later tools.

In: any msgspec Struct or dict that describes an episode, and the step it belongs to. Out: one JSON line a record in
RUN_DIR/episodes/SPLIT-STEP.jsonl. Leaves what is in a record to the rollout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from rockroll.append import write_whole


class EpisodeLog:
    """Appends episode records; a step's file is begun anew when the step is done again after a resume."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "episodes"
        self.folder.mkdir(exist_ok=True)

    def write(self, split: str, step: int, records: list[Any]) -> None:
        """All records of one step, replaced as a whole. HostError where they cannot be written."""
        path = self.folder / f"{split}-{step:06d}.jsonl"
        write_whole(path, b"".join(msgspec.json.encode(record) + b"\n" for record in records))

    def read(self, split: str, step: int) -> list[dict[str, Any]]:
        """The records of one step; empty where there are none."""
        path = self.folder / f"{split}-{step:06d}.jsonl"
        return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []
