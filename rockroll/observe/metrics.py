"""What a run measured, one row a step.

In: rows of names and numbers. Out: `metrics.jsonl` (one object a line) and TensorBoard files of the same numbers.
Leaves what the numbers mean to those who measured them.
"""

from __future__ import annotations

import io
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rockroll.append import Appended, unwritable, write_whole

Row = dict[str, float | int]


class MetricsLog:
    """Appends rows to RUN_DIR/metrics.jsonl and RUN_DIR/tensorboard/.

    A row is on disk when `write` returns. resume_from: rows after that step are dropped first, so that a resumed run
    has each step once. also: told each row, once it is on the disk; it returns at once.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        resume_from: int | None = None,
        tensorboard: bool = True,
        also: Callable[[Row], None] = lambda _: None,
    ) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.rows: list[Row] = []
        """What was there, and of what is written now the evaluations: a long run does not keep all its rows."""
        if resume_from is not None and self.path.exists():
            self.rows = [row for row in read_rows(self.path) if row["step"] <= resume_from]
            write_whole(self.path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self._last = int(self.rows[-1]["step"]) if self.rows else -1
        self._file = Appended(self.path)
        self._board = _Board(run_dir / "tensorboard") if tensorboard else None
        self._also = also

    @property
    def last_step(self) -> int:
        """Of the last row; -1 where there is none."""
        return self._last

    def write(self, row: Row) -> None:
        """One step's row. It must have "step". HostError where it cannot be written: then nothing of it is there."""
        rounded: dict[str, Any] = {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
        self._file.add(f"{json.dumps(rounded)}\n".encode())
        self._last = int(row["step"])
        if any(name.startswith("eval/") for name in row):
            self.rows.append(row)
        if self._board is not None:
            self._board.write(row)
        self._also(row)

    def sync(self) -> None:
        """The rows are on the disk: they survive loss of power."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
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
    """TensorBoard's event file, written without TensorFlow or torch. Absent where tensorboard is not installed.

    Its own writer has a thread, whose errors nobody hears.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            self._file = None
            return
        self._event, self._summary, self._record = Event, Summary, RecordWriter
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from None
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        self._file = Appended(folder / name)
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, row: Row) -> None:
        if self._file is None:
            return
        values = [self._summary.Value(tag=k, simple_value=float(v)) for k, v in row.items() if k != "step"]
        summary = self._summary(value=values)
        self._put(self._event(wall_time=time.time(), step=int(row["step"]), summary=summary))

    def _put(self, event: Any) -> None:
        assert self._file is not None
        framed = io.BytesIO()
        self._record(framed).write(event.SerializeToString())
        self._file.add(framed.getvalue())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
