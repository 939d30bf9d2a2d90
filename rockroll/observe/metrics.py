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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rockroll.append import Appended, unwritable, write_whole

Row = dict[str, float | int]


class MetricsLog:
    """Appends rows to RUN_DIR/metrics.jsonl and RUN_DIR/tensorboard/.

    A row is on disk when `write` returns. resume_from: rows after that step are dropped first, in both, so that a
    resumed run has each step once. most: bytes of the file; where it has more, it is made anew with every second step,
    every fourth, …, to half of that, the first, the last and the evaluations in any case; tensorboard/ then has the
    same steps. None: no bound. also: told each row, once it is on the disk; it returns at once.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        resume_from: int | None = None,
        most: int | None = None,
        tensorboard: bool = True,
        also: Callable[[Row], None] = lambda _: None,
    ) -> None:
        self._most = most
        self.path = run_dir / "metrics.jsonl"
        self.rows: list[Row] = []
        """What was there, and of what is written now the evaluations: a long run does not keep all its rows."""
        if resume_from is not None and self.path.exists():
            self.rows = [row for row in read_rows(self.path) if row["step"] <= resume_from]
            write_whole(self.path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self._last = int(self.rows[-1]["step"]) if self.rows else -1
        self._file = Appended(self.path)
        self._board = _Board(run_dir / "tensorboard") if tensorboard else None
        if self._board is not None and resume_from is not None:
            self._board.keep({int(row["step"]) for row in self.rows})
        self._also = also

    @property
    def last_step(self) -> int:
        """Of the last row; -1 where there is none."""
        return self._last

    def write(self, row: Row) -> None:
        """One step's row. It must have "step". HostError where it cannot be written: then nothing of it is there."""
        rounded: dict[str, Any] = {k: _rounded(v) if isinstance(v, float) else v for k, v in row.items()}
        self._file.add(f"{json.dumps(rounded)}\n".encode())
        self._last = int(row["step"])
        if any(name.startswith("eval/") for name in row):
            self.rows.append(row)
        if self._board is not None:
            self._board.write(row)
        self._also(row)
        if self._most is not None and self._file.size > self._most:
            self._thin(self._most // 2)

    def _thin(self, most: int) -> None:
        kept = thinned(read_rows(self.path), most)
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file.close()
        self._file = Appended(self.path)
        if self._board is not None:
            self._board.keep({int(row["step"]) for row in kept})

    def sync(self) -> None:
        """The rows are on the disk: they survive loss of power."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _rounded(value: float) -> float:
    """Six digits; also of what is small: a learning rate of 4e-7 is not 0."""
    return round(value, 6) if abs(value) >= 0.1 else float(f"{value:.6g}")


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a metrics.jsonl; a last line cut short by a crash is left out."""
    rows: list[Row] = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def thinned(rows: list[Row], most: int) -> list[Row]:
    """So many of them that they take at most `most` bytes: those whose step is a multiple of the smallest power of two
    that will do, the first, the last, and the evaluations, which are thinned alike only where they alone are too many.
    """
    sizes = [len(json.dumps(row)) + 1 for row in rows]
    evaluated = [any(name.startswith("eval/") for name in row) for row in rows]
    for spare in (True, False):
        stride = 1
        while stride <= rows[-1]["step"]:
            stride *= 2
            kept = [
                at
                for at, row in enumerate(rows)
                if row["step"] % stride == 0 or at in (0, len(rows) - 1) or (spare and evaluated[at])
            ]
            if sum(sizes[at] for at in kept) <= most:
                return [rows[at] for at in kept]
    return [rows[0], rows[-1]]


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
        self._folder = folder
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

    def keep(self, steps: set[int]) -> None:
        """Drop the others; a file of an earlier process of which nothing is left goes."""
        if self._file is None:
            return
        for path in self._folder.glob("events.out.tfevents.*"):
            frames = [(frame, self._event.FromString(frame[12:-4])) for frame in _frames(path.read_bytes())]
            left = [(frame, event) for frame, event in frames if event.file_version or event.step in steps]
            if path == self._file.path or any(not event.file_version for _, event in left):
                write_whole(path, b"".join(frame for frame, _ in left))
            else:
                path.unlink()
        self._file.close()
        self._file = Appended(self._file.path)

    def _put(self, event: Any) -> None:
        assert self._file is not None
        framed = io.BytesIO()
        self._record(framed).write(event.SerializeToString())
        self._file.add(framed.getvalue())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _frames(data: bytes) -> Iterator[bytes]:
    """The records of an event file: length (8 bytes), its checksum (4), the event, its checksum (4); what a death tore
    at the end is left out."""
    at = 0
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 8], "little") + 4
        if end > len(data):
            return
        yield data[at:end]
        at = end
