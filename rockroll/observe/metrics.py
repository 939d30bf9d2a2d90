"""What a run measured, one row a step.

In: rows of names and numbers. Out: `metrics.jsonl` (one object a line) and TensorBoard files of the same numbers.
Leaves what the numbers mean to those who measured them.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

Row = dict[str, float | int]


class MetricsLog:
    """Appends rows to RUN_DIR/metrics.jsonl and RUN_DIR/tensorboard/.

    A row is on disk when `write` returns. resume_from: rows after that step are dropped first, so that a resumed run
    has each step once.
    """

    def __init__(self, run_dir: Path, *, resume_from: int | None = None) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.rows: list[Row] = []
        if resume_from is not None and self.path.exists():
            self.rows = [row for row in read_rows(self.path) if row["step"] <= resume_from]
            aside = self.path.with_suffix(".tmp")
            aside.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            aside.replace(self.path)
        self._file = self.path.open("a", buffering=1)
        self._board = _Board(run_dir / "tensorboard")

    def write(self, row: Row) -> None:
        """One step's row. It must have "step"."""
        rounded: dict[str, Any] = {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
        self._file.write(json.dumps(rounded) + "\n")
        self.rows.append(row)
        self._board.write(row)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a metrics.jsonl; a last line cut short by a crash is left out."""
    rows: list[Row] = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class _Board:
    """TensorBoard's event file, written without TensorFlow or torch. Absent where tensorboard is not installed."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            self._writer = None
            return
        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder))

    def write(self, row: Row) -> None:
        if self._writer is None:
            return
        values = [self._summary.Value(tag=k, simple_value=float(v)) for k, v in row.items() if k != "step"]
        summary = self._summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=int(row["step"]), summary=summary))
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
