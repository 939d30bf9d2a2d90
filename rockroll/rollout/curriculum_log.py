"""What a curriculum has measured and decided, on disk as it happens: a run that goes on draws what it would have drawn.

In: records of mixture.py. Out: RUN_DIR/curriculum.jsonl, one record a line, and the records of the run before. Leaves
what they mean to mixture.py. A record survives the death of every process; the last line of one that was killed in the
middle of writing is dropped. At a checkpoint one record takes the place of all: the file is as long as what was
measured since then, and the groups that are open.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from rockroll.append import Appended, write_whole
from rockroll.errors import HostError
from rockroll.rollout.mixture import Folded, Record

_decoder = msgspec.json.Decoder(Record)


class CurriculumLog:
    """path: of this run alone; nothing is written there before the first record.

    past: the records that are there. HostError where it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Appended | None = None
        self.past: list[Record] = []
        try:
            whole = path.read_bytes() if path.exists() else b""
            end = whole.rfind(b"\n") + 1
            self.past = [_decoder.decode(line) for line in whole[:end].splitlines()]
            if end < len(whole):
                os.truncate(path, end)
        except (OSError, msgspec.DecodeError) as error:
            raise HostError(f"{path} says which tasks were drawn, and cannot be read: {error}") from None

    def put(self, record: Record) -> None:
        """HostError where it cannot be written: it is not there then."""
        if self._file is None:
            self._file = Appended(self._path)
        self._file.add(msgspec.json.encode(record) + b"\n")

    def fold(self, record: Folded) -> None:
        """It says what all records before it say: they go. HostError where it cannot be written, and they stay."""
        write_whole(self._path, msgspec.json.encode(record) + b"\n")
        self.close()

    @property
    def empty(self) -> bool:
        """Nothing was ever put into it."""
        return self._file is None and not self.past

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
