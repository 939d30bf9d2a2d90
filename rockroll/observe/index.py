"""Where each episode's record lies, and what a list of episodes shows of it: beside the records, in SQLite.

In: RUN_DIR/episodes/*.jsonl. Out: RUN_DIR/episodes/index.sqlite, a row an episode with the bytes of its record. Leaves
what is asked of it to view/. The records are what is true: a file that was replaced, has grown or is gone is noticed by
its size and time, and an index that cannot be read, or is of another make, is made anew.

One process writes at a time and any number read meanwhile (WAL). A folder that may not be written to is indexed in a
temporary file.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from msgspec import DecodeError, Struct, json

NAME = "index.sqlite"
_MAKE = 1
"""Of the tables below: an index of another make is thrown away."""
_WAIT_S = 10.0
_SHOWN = 400
"""Characters of a detail that a list may show."""
_TABLES = """
CREATE TABLE files (name TEXT PRIMARY KEY, size INTEGER, mtime INTEGER) WITHOUT ROWID;
CREATE TABLE episodes (
    number INTEGER PRIMARY KEY, file TEXT, line INTEGER, offset INTEGER, length INTEGER,
    split TEXT, step INTEGER, id TEXT, task TEXT, seed INTEGER, grp INTEGER, place INTEGER, outcome TEXT, cause TEXT,
    reward REAL, turns INTEGER, sampled INTEGER, tokens INTEGER, duration REAL, began REAL,
    sandbox TEXT, detail TEXT
);
CREATE UNIQUE INDEX by_place ON episodes (file, line);
CREATE INDEX by_step ON episodes (split, step, grp, place, reward);
CREATE INDEX by_age ON episodes (step);
CREATE INDEX by_outcome ON episodes (outcome, split, step, grp, place);
CREATE INDEX by_id ON episodes (id);
"""


class _Call(Struct):
    """What a list says of a model call."""

    prompt_tokens: int = 0
    sampled: int = 0


class _Head(Struct):
    """What is read of a record: all else is passed over without being decoded."""

    id: str
    task: str = ""
    seed: int = 0
    group: int = 0
    index: int = 0
    outcome: str = ""
    cause: str | None = None
    reward: float | None = None
    turns: int = 0
    duration_s: float = 0.0
    began_at: float = 0.0
    sandbox: str = ""
    detail: str = ""
    record: list[_Call] = []


_head = json.Decoder(_Head)


def split_and_step(name: str) -> tuple[str, int]:
    """("train", 12) of train-000012.jsonl; ValueError for a name that is none of a records' file."""
    split, dash, step = name.removesuffix(".jsonl").rpartition("-")
    if not (name.endswith(".jsonl") and dash and split and step.isdigit()):
        raise ValueError(f"a file of records is called SPLIT-STEP.jsonl; got {name!r}")
    return split, int(step)


class EpisodeIndex:
    """The index of one run's records. Safe to use from several threads and processes."""

    def __init__(self, folder: Path) -> None:
        """folder: RUN_DIR/episodes; it may be missing still."""
        self.folder = folder
        self._aside: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        if self._aside:
            self._aside.cleanup()

    @property
    def _path(self) -> Path:
        """Beside the records; aside for as long as that cannot be."""
        if os.access(self.folder, os.W_OK):
            return self.folder / NAME
        if self._aside is None:
            self._aside = tempfile.TemporaryDirectory(prefix="rockroll-index-")
        return Path(self._aside.name) / NAME

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for questions, with rows by column name."""
        with closing(self._open()) as database:
            yield database

    def refresh(self) -> Iterator[tuple[int, int]]:
        """Take in what has changed since the last time, a file a step: (files done, files to do)."""
        if not self.folder.is_dir():
            return
        with closing(self._open()) as database:
            known = {name: (size, mtime) for name, size, mtime in database.execute("SELECT * FROM files")}
            there: dict[str, tuple[int, int]] = {}
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".jsonl") and "-" in entry.name:
                        with suppress(FileNotFoundError):  # the run's bound took it meanwhile
                            stat = entry.stat()
                            there[entry.name] = (stat.st_size, stat.st_mtime_ns)
            todo = sorted(name for name, found in there.items() if known.get(name) != found)
            for name in known.keys() - there.keys():
                with database:
                    _forget(database, name)
            for done, name in enumerate(todo):
                yield done, len(todo)
                self._put(database, name)
            yield len(todo), len(todo)

    def put(self, name: str) -> None:
        """Take in one file that was just written."""
        with closing(self._open()) as database:
            self._put(database, name)

    def forget(self, names: Iterable[str]) -> None:
        """Files that are gone."""
        with closing(self._open()) as database, database:
            for name in names:
                _forget(database, name)

    def _put(self, database: sqlite3.Connection, name: str) -> None:
        try:
            split, step = split_and_step(name)
            with (self.folder / name).open("rb") as file:
                stat = os.fstat(file.fileno())
                rows = list(_rows(file.read(stat.st_size), name, split, step))
        except (ValueError, FileNotFoundError):
            return
        with database:
            database.execute("BEGIN IMMEDIATE")
            _forget(database, name)
            database.executemany(f"INSERT INTO episodes VALUES (NULL{', ?' * 21})", rows)
            database.execute("INSERT INTO files VALUES (?, ?, ?)", (name, stat.st_size, stat.st_mtime_ns))

    def _open(self) -> sqlite3.Connection:
        path = self._path
        try:
            return _opened(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # busy, or no room: not damaged
                raise
            for end in ("", "-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
            return _opened(path)


def _opened(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_WAIT_S, check_same_thread=False)
    try:
        database.row_factory = sqlite3.Row
        # A crash may lose the last rows; they are read from the records again.
        database.execute("PRAGMA synchronous = OFF")
        if database.execute("PRAGMA user_version").fetchone()[0] != _MAKE:
            database.execute("PRAGMA journal_mode = WAL")
            _make(database)
    except BaseException:
        database.close()
        raise
    return database


def _make(database: sqlite3.Connection) -> None:
    with database:
        database.execute("BEGIN EXCLUSIVE")
        if database.execute("PRAGMA user_version").fetchone()[0] == _MAKE:
            return  # another process was quicker
        for table in ("files", "episodes"):
            database.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in _TABLES.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {_MAKE}")


def _forget(database: sqlite3.Connection, name: str) -> None:
    database.execute("DELETE FROM episodes WHERE file = ?", (name,))
    database.execute("DELETE FROM files WHERE name = ?", (name,))


def _rows(data: bytes, name: str, split: str, step: int) -> Iterator[tuple[object, ...]]:
    """A row for each whole line that is a record; a last line without its end is one that is being written."""
    offset = 0
    for line, record in enumerate(data.split(b"\n")[:-1]):
        try:
            head = _head.decode(record)
        except DecodeError:
            offset += len(record) + 1
            continue
        yield (
            name,
            line,
            offset,
            len(record),
            split,
            step,
            head.id,
            head.task,
            head.seed,
            head.group,
            head.index,
            head.outcome,
            head.cause,
            head.reward,
            head.turns,
            sum(call.sampled for call in head.record),
            max((call.prompt_tokens + call.sampled for call in head.record), default=0),
            head.duration_s,
            head.began_at,
            head.sandbox,
            head.detail[:_SHOWN],
        )
        offset += len(record) + 1
