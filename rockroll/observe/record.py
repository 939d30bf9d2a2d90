"""One record an episode, kept for people and later tools.

In: any msgspec Struct or dict that describes an episode, and the step it belongs to. Out: one JSON line a record in
RUN_DIR/episodes/SPLIT-STEP.jsonl, and its row in the index beside them; the oldest steps go where there is a bound.
Leaves what is in a record to the rollout.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import msgspec

from rockroll.append import write_whole
from rockroll.observe.index import EpisodeIndex, split_and_step

_log = logging.getLogger(__name__)


class EpisodeLog:
    """Appends episode records; a step's file is begun anew when the step is done again after a resume.

    most: bytes of all records. Where a step is written beyond it, the oldest steps go. None: no bound.
    """

    def __init__(self, run_dir: Path, most: int | None = None) -> None:
        self.folder = run_dir / "episodes"
        self.folder.mkdir(exist_ok=True)
        self._index = EpisodeIndex(self.folder)
        self._begun: set[Path] = set()
        self._most = most
        self._sizes: dict[int, dict[str, int]] = {}
        """Bytes by step and file."""
        self._steps: list[int] = []
        """A heap of those steps: what goes next is found without looking at all."""
        self._total = 0
        for path in self.folder.glob("*-[0-9]*.jsonl"):
            with suppress(ValueError):  # a file of somebody else's
                self._has(path.name, path.stat().st_size)

    def write(self, split: str, step: int, records: list[Any]) -> None:
        """All records of one step, replaced as a whole. HostError where they cannot be written."""
        path = self._path(split, step)
        data = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        write_whole(path, data)
        self._has(path.name, len(data))
        self._put(path)
        self._bound(step)

    def add(self, split: str, step: int, record: Any) -> None:
        """One more record of a step, at once: what the first one of this process finds there is of an earlier run.
        Where the disk takes no more it is left out: what a run stands on is written elsewhere, and says so."""
        path = self._path(split, step)
        try:
            with path.open("ab" if path in self._begun else "wb") as file:
                file.write(msgspec.json.encode(record) + b"\n")
                self._has(path.name, file.tell())
        except OSError as error:
            _log.warning("%s: a record was not kept: %s", path, error)
        self._begun.add(path)

    def read(self, split: str, step: int) -> list[dict[str, Any]]:
        """The records of one step; empty where there are none."""
        path = self._path(split, step)
        return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def _path(self, split: str, step: int) -> Path:
        return self.folder / f"{split}-{step:06d}.jsonl"

    def _bound(self, step: int) -> None:
        """The oldest steps go, whole, until the rest is within the bound. This one stays, however large it is."""
        while self._most is not None and self._total > self._most and self._steps[0] < step:
            gone = self._sizes.pop(heappop(self._steps))
            self._total -= sum(gone.values())
            self._begun -= {self.folder / name for name in gone}
            for name in gone:
                (self.folder / name).unlink(missing_ok=True)
            try:
                self._index.forget(gone)
            except (sqlite3.Error, OSError) as error:
                _log.warning("%s are gone, and still in the index: %s", ", ".join(gone), error)

    def _has(self, name: str, size: int) -> None:
        """That file has so many bytes now. ValueError for a name that is none of a records' file."""
        step = split_and_step(name)[1]
        if step not in self._sizes:
            self._sizes[step] = {}
            heappush(self._steps, step)
        self._total += size - self._sizes[step].get(name, 0)
        self._sizes[step][name] = size

    def _put(self, path: Path) -> None:
        """The index can be made from the records at any time: a run does not end for want of it."""
        try:
            self._index.put(path.name)
        except (sqlite3.Error, OSError) as error:
            _log.warning("%s was not indexed, `rockroll view` will: %s", path, error)
