"""One record an episode, kept for people and later tools.

In: any msgspec Struct or dict that describes an episode, and the step it belongs to. Out: one JSON line a record in
RUN_DIR/episodes/SPLIT-STEP.jsonl, and its row in the index beside them. Leaves what is in a record to the rollout.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from rockroll.append import write_whole
from rockroll.observe.index import EpisodeIndex

_log = logging.getLogger(__name__)


class EpisodeLog:
    """Appends episode records; a step's file is begun anew when the step is done again after a resume."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "episodes"
        self.folder.mkdir(exist_ok=True)
        self._index = EpisodeIndex(self.folder)
        self._begun: set[Path] = set()

    def write(self, split: str, step: int, records: list[Any]) -> None:
        """All records of one step, replaced as a whole. HostError where they cannot be written."""
        path = self._path(split, step)
        write_whole(path, b"".join(msgspec.json.encode(record) + b"\n" for record in records))
        self._put(path)

    def add(self, split: str, step: int, record: Any) -> None:
        """One more record of a step, at once: what the first one of this process finds there is of an earlier run.
        Where the disk takes no more it is left out: what a run stands on is written elsewhere, and says so."""
        path = self._path(split, step)
        try:
            with path.open("ab" if path in self._begun else "wb") as file:
                file.write(msgspec.json.encode(record) + b"\n")
        except OSError as error:
            _log.warning("%s: a record was not kept: %s", path, error)
        self._begun.add(path)

    def read(self, split: str, step: int) -> list[dict[str, Any]]:
        """The records of one step; empty where there are none."""
        path = self._path(split, step)
        return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def _path(self, split: str, step: int) -> Path:
        return self.folder / f"{split}-{step:06d}.jsonl"

    def _put(self, path: Path) -> None:
        """The index can be made from the records at any time: a run does not end for want of it."""
        try:
            self._index.put(path.name)
        except (sqlite3.Error, OSError) as error:
            _log.warning("%s was not indexed, `rockroll view` will: %s", path, error)
