"""A time line in Chrome's trace format: open RUN_DIR/trace.json in ui.perfetto.dev or chrome://tracing.

In: spans and instants, each when it is over. Out: one JSON array, an event a line. Its end may be missing: the format
allows that, so that a run that was killed can be looked at. Leaves what a lane or a name means to the caller.

A file that is there is gone on with. Where the bound or the disk ends it, the last event says so, and the run goes on.
"""

from __future__ import annotations

import json
import logging
import time
from bisect import bisect_right, insort
from pathlib import Path
from typing import Any, Self

import msgspec

from rockroll.append import Appended
from rockroll.errors import HostError

NAME = "trace.json"
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_EVENTS = 256
"""Written at once."""
_WAIT_S = 1.0
"""An event is written with the first one that comes so much later."""
_TAIL = 2**16
"""Bytes in which the last whole line of a file is looked for; an event is far shorter."""


class Trace:
    """begin ─► span | instant … ─► close. Belongs to one thread.

    most: bytes of the file; 0: there is none. Times are seconds since 1970.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._most = path, most
        self._held: list[bytes] = []
        self._wrote = time.monotonic()
        self._file: Appended | None = None
        if not most:
            return
        try:
            self._size, last = _whole(path)
            self._file = Appended(path)
        except (OSError, HostError) as error:
            self._fail(error)
            return
        if self._end.encode() in last:  # an earlier part of the run came to this bound
            self.close()

    @property
    def _end(self) -> str:
        return f"the time line ends here: records.trace_mb is {self._most / 2**20:g}"

    @property
    def open(self) -> bool:
        """Whether events are still taken."""
        return self._file is not None

    def lane(self, process: int, lane: int, name: str) -> None:
        """Names a lane; again on the same one changes nothing of the events. Lanes are shown by number."""
        at: dict[str, Any] = {"ph": "M", "pid": process, "tid": lane}
        self._put({**at, "name": "thread_name", "args": {"name": name}})
        self._put({**at, "name": "thread_sort_index", "args": {"sort_index": lane}})

    def process(self, process: int, name: str) -> None:
        """Names a block of lanes."""
        self._put({"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": name}})

    def span(self, process: int, lane: int, name: str, begun: float, ended: float, args: dict[str, Any]) -> None:
        """What lasted. Spans of one lane follow one another, or lie within one another."""
        start = round(begun * 1e6)
        long = max(0, round(ended * 1e6) - start)
        self._put({"name": name, "ph": "X", "ts": start, "dur": long, "pid": process, "tid": lane, "args": args})

    def instant(self, process: int, lane: int, name: str, at: float, args: dict[str, Any]) -> None:
        """What happened at once; drawn through all lanes of the process."""
        where = {"pid": process, "tid": lane, "s": "p"}
        self._put({"name": name, "ph": "i", "ts": round(at * 1e6), **where, "args": args})

    def _put(self, event: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._held.append(_encode(event))
        if len(self._held) >= _EVENTS or time.monotonic() - self._wrote > _WAIT_S:
            self.flush()

    def flush(self) -> None:
        """What is held is written."""
        held, self._held = self._held, []
        self._wrote = time.monotonic()
        if self._file is None or not held:
            return
        data = b"".join(b",\n" + each for each in held)
        try:
            if self._size + len(data) > self._most:
                last = {"name": self._end, "ph": "i", "s": "g", "pid": 0, "tid": 0, "ts": round(time.time() * 1e6)}
                self._add(b",\n" + _encode(last))
                self.close()
            else:
                self._add(data)
        except HostError as error:
            self._fail(error)

    def _add(self, data: bytes) -> None:
        assert self._file is not None
        data = data if self._size else b"[" + data[1:]
        self._file.add(data)
        self._size += len(data)

    def _fail(self, error: Exception) -> None:
        _log.warning("the time line ends here, and the run goes on: %s", error)
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """The array ends: any reader of JSON can read it. A second time it does nothing."""
        self.flush()
        if self._file is not None:
            try:
                self._file.add(b"\n]\n" if self._size else b"[]\n")
            except HostError as error:
                self._fail(error)
                return
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Lanes:
    """Puts spans on lanes so that no two on one overlap; they come in the order in which they end.

    It takes as many lanes as spans were ever under way at once: each goes where the last one ended the latest before.
    """

    def __init__(self) -> None:
        self._ends: list[tuple[float, int]] = []
        """When each lane is free, and its number, ascending."""

    def place(self, begun: float, ended: float) -> tuple[int, bool]:
        """The span's lane, 0 …, and whether it is a new one."""
        at = bisect_right(self._ends, (begun, len(self._ends)))
        new = at == 0
        lane = len(self._ends) if new else self._ends.pop(at - 1)[1]
        insort(self._ends, (ended, lane))
        return lane, new


def _whole(path: Path) -> tuple[int, bytes]:
    """Cuts off the end of the array, or an event that a death tore; the bytes that are left, of whole events, and the
    last one."""
    if not path.exists():
        return 0, b""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        begin = max(0, size - _TAIL)
        file.seek(begin)
        tail = file.read(size - begin)
        while tail and not _ends_whole(tail):
            tail = tail[: max(0, tail.rstrip(b"\n").rfind(b"\n"))]
        size = begin + len(tail) if tail else 0
        file.truncate(size)
    return size, tail.rpartition(b"\n")[2]


def _ends_whole(tail: bytes) -> bool:
    last = tail.rpartition(b"\n")[2].rstrip(b",")
    try:
        return tail[-1:] == b"}" and isinstance(json.loads(last.removeprefix(b"[")), dict)
    except ValueError:
        return False
