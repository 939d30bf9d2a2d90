"""What a run has begun since its last checkpoint, on disk as it happens: `kill -9` loses nothing that had ended.

In: records of opened.py. Out: RUN_DIR/ledger/*.ledger, and what they come to for a run that goes on. Leaves what the
records mean to opened.py, single turns to journal.py, and weights to checkpoints.

    00000-after-0.ledger    from the beginning
    00001.ledger            goes on where 00000 was torn: every opening begins a file, as a torn record ends one
    00002-after-10.ledger   begins with all that was open when the checkpoint of step 10 was whole

A checkpoint is continued from the newest file that begins at or before its step, and all files after that one: it
does not matter at which moment between the two the run was killed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import msgspec

from rockroll.append import Appended, unwritable
from rockroll.errors import HostError, UsageError
from rockroll.rollout import frames
from rockroll.rollout.opened import Began, Books, Ended, Opened, Record, Taken, Whole

MAGIC = b"rockroll ledger 1\n"


class _Head(msgspec.Struct, frozen=True, array_like=True, tag="head"):
    """What is open now; it follows as records."""

    next: int
    books: dict[int, tuple[int, dict[str, int]]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Head | Record).decode


class Ledger:
    """open ─► put … rotate … ─► close. Belongs to one event loop.

    folder: of this run alone. after: the step of the checkpoint to go on from; 0: the start model.
    past: what was open, and which batches were trained since that checkpoint.
    UsageError where the folder does not tell what followed that checkpoint; HostError where it cannot be written.
    """

    def __init__(self, folder: Path, after: int = 0) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from None
        files = _files(folder)
        heads = [n for n, path in enumerate(files) if (begins := _after(path)) is not None and begins <= after]
        if (files or after) and not heads:
            raise UsageError(
                f"{folder} says which tasks were trained, but not since step {after}; continue from a later "
                "checkpoint, or begin another run from this one's model"
            )
        self.past = read(files[heads[-1] :] if files else [], after)
        self._now = self.past.copy()
        self._number = _number(files[-1]) + 1 if files else 0
        self._file = self._begin(None if files else after)

    def put(self, record: Record) -> None:
        """Returns when the record survives the death of every process. HostError where it cannot be written."""
        self._file.add(frames.pack(_encode(record)))
        self._now.add(record)
        self._now.batches.clear()  # the trainer has them

    def rotate(self, step: int) -> None:
        """The checkpoint of `step` is whole: begin a file with what is open now."""
        file = self._begin(step)
        self._file.close()
        self._file = file

    def prune(self, oldest: int) -> None:
        """Remove what no checkpoint from step `oldest` on needs."""
        files = _files(self._folder)
        heads = [n for n, path in enumerate(files) if (begins := _after(path)) is not None and begins <= oldest]
        for path in files[: heads[-1]] if heads else []:
            path.unlink()

    @property
    def floor(self) -> int:
        """A run that goes on, from whichever checkpoint, begins no group below this number, nor goes on with one."""
        return min(self._now.open, default=self._now.next)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, after: int | None) -> Appended:
        """The next file. after: None goes on from the one before; else it is on the disk before it has its name."""
        path = self._folder / f"{self._number:05}{'' if after is None else f'-after-{after}'}.ledger"
        aside = path.with_suffix(".partial")
        aside.unlink(missing_ok=True)
        file = Appended(aside)
        try:
            file.add(
                MAGIC + (b"" if after is None else b"".join(frames.pack(_encode(each)) for each in self._open(after)))
            )
            if after is not None:
                file.sync()
            aside.rename(path)
            file.path = path
        except (OSError, HostError) as error:
            file.close()
            aside.unlink(missing_ok=True)
            raise unwritable(path, error) if isinstance(error, OSError) else error from None
        self._number += 1
        return file

    def _open(self, after: int) -> list[_Head | Record]:
        """What is open now, after the batches of before that are still to be trained."""
        now = self._now
        records: list[_Head | Record] = [
            _Head(now.next, {id: (tokens, dict(discarded)) for id, (tokens, discarded) in now.books.groups.items()})
        ]
        for version, groups in sorted(self.past.batches.items()):
            if version < after:
                continue
            for group in groups:  # what is booked on it already is in it; the version of its weights is in its tokens
                chosen = [episode.index for episode in group.episodes]
                whole = Whole(msgspec.structs.replace(group, episodes=[]), chosen)
                records += [Began(group.id, 0), *(Ended(episode) for episode in group.episodes), whole]
            records.append(Taken(version, [group.id for group in groups], 0))
        for id, kept in now.open.items():
            records += [Began(id, kept.version), *(Ended(episode) for episode in kept.episodes)]
            records += [kept.whole] if kept.whole else []
        return records


def read(files: list[Path], after: int) -> Opened:
    """What these files come to, for a run that goes on after step `after`.

    UsageError for what is no ledger, HostError for one that was damaged before its end.
    """
    opened = Opened(after)
    for path in files:
        for body in frames.unpack(path, MAGIC, "ledger"):
            try:
                record = _decode(body)
                if isinstance(record, _Head):
                    opened.open, opened.next, opened.books = {}, record.next, Books()
                    for id, (tokens, discarded) in record.books.items():
                        opened.books.add(id, tokens, discarded)
                else:
                    opened.add(record)
            except (msgspec.DecodeError, ValueError) as error:
                raise HostError(f"{path} cannot be read: {error}; was it made by another rockroll?") from None
    opened.forget(after)
    return opened


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.ledger") if path.name[:5].isdigit())


def _number(path: Path) -> int:
    return int(path.name[:5])


def _after(path: Path) -> int | None:
    """The step that a file begins after; None for one that goes on from the file before."""
    _, _, step = path.stem.partition("-after-")
    return int(step) if step else None
