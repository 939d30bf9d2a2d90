"""Which sandboxes this home has and had, kept across nodes.

In and out: one Row for each sandbox, in SQLite (WAL) at node/registry.sqlite; a row of a sandbox that is gone stays
among the last GONE_KEPT. Leaves what is true of them to takeover.py, which compares with Podman at a node's start.
A call is a few tens of microseconds: no disk is waited for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from rockroll.errors import HostError
from rockroll.sandbox.wire import Cause, Owner, State

VERSION = 3
"""Of the schema, in PRAGMA user_version. 1 (written as 0) had no owners, states and ends; 2 no keys."""
GONE_KEPT = 1000
_COLUMNS = (
    "id TEXT PRIMARY KEY, name TEXT NOT NULL, config BLOB NOT NULL, owner TEXT NOT NULL, container TEXT NOT NULL,"
    " created REAL NOT NULL, owner_pid INTEGER NOT NULL DEFAULT 0, owner_birth INTEGER NOT NULL DEFAULT 0,"
    " state TEXT NOT NULL DEFAULT 'running', cause TEXT, ended REAL, key TEXT NOT NULL DEFAULT ''"
)
_NAMES = "id, name, config, owner, container, created, owner_pid, owner_birth, state, cause, ended, key"


class Row(NamedTuple):
    id: str
    name: str
    config: dict[str, Any]
    owner: Owner
    container: str
    """Podman's id; "" until Podman has made it."""
    created: float
    owner_pid: int = 0
    owner_birth: int = 0
    """Of the process that made a "connection" sandbox: with its pid it names one process for good."""
    state: State = "starting"
    cause: Cause | None = None
    ended: float | None = None
    key: str = ""
    """What its maker calls it; "" where that gave no key."""


class Registry:
    """The tables. Only the node writes; whoever likes may read them with any SQLite."""

    def __init__(self, path: Path) -> None:
        self.changed: Callable[[str], None] = lambda _: None
        """Told the id of each sandbox that came or went."""
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        # After a power cut the containers are gone as well: what the last second wrote need not survive it.
        self._db.execute("PRAGMA synchronous = OFF")
        self._migrate(path)

    def _migrate(self, path: Path) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > VERSION:
            self._db.close()
            raise HostError(
                f"{path} has schema {found} and this rockroll knows {VERSION}; use the rockroll that wrote it,"
                " or remove its sandboxes with that one and move the file away"
            )
        if found == VERSION:
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._make_table("sandboxes", ", UNIQUE (name)")
        self._make_table("gone")
        self._db.execute(f"PRAGMA user_version = {VERSION}")
        self._db.execute("COMMIT")

    def _make_table(self, name: str, more: str = "") -> None:
        """With the rows that it has in an older schema: that has no column which this lacks."""
        old = [column for _, column, *_ in self._db.execute(f"PRAGMA table_info({name})")]
        if old:
            self._db.execute(f"ALTER TABLE {name} RENAME TO old")
        self._db.execute(f"CREATE TABLE {name} ({_COLUMNS}{more})")
        if old:
            shared = ", ".join(old)
            self._db.execute(f"INSERT INTO {name} ({shared}) SELECT {shared} FROM old")
            self._db.execute("DROP TABLE old")

    def put(self, row: Row) -> None:
        """Adds or replaces."""
        self._put("sandboxes", row)
        self.changed(row.id)

    def _put(self, table: str, row: Row) -> None:
        marks = ", ".join("?" * len(row))
        values = row._replace(config=msgspec.json.encode(row.config))  # type: ignore[arg-type]
        self._db.execute(f"INSERT OR REPLACE INTO {table} ({_NAMES}) VALUES ({marks})", values)

    def mark(self, id: str, state: State, cause: Cause | None, ended: float | None) -> None:
        """What has become of it."""
        self._db.execute("UPDATE sandboxes SET state = ?, cause = ?, ended = ? WHERE id = ?", (state, cause, ended, id))

    def own(self, id: str, pid: int, birth: int) -> None:
        """Who owns it."""
        self._db.execute("UPDATE sandboxes SET owner_pid = ?, owner_birth = ? WHERE id = ?", (pid, birth, id))

    def drop(self, id: str, cause: Cause, ended: float) -> None:
        """It is gone. A cause that it had died of before stays its cause; of one that never came to be nothing is kept,
        since nobody was told of it."""
        for row in self._read("sandboxes", "WHERE id = ?", (id,)):
            self._db.execute("BEGIN IMMEDIATE")
            if row.state != "starting":
                self._put("gone", row._replace(state="gone", cause=row.cause or cause, ended=row.ended or ended))
            self._db.execute("DELETE FROM sandboxes WHERE id = ?", (id,))
            oldest = "SELECT rowid FROM gone ORDER BY rowid DESC LIMIT -1 OFFSET ?"
            self._db.execute(f"DELETE FROM gone WHERE rowid IN ({oldest})", (GONE_KEPT,))
            self._db.execute("COMMIT")
        self.changed(id)

    def rows(self) -> list[Row]:
        """Those there are."""
        return list(self._read("sandboxes", "", ()))

    def keyed(self, key: str) -> str | None:
        """The id of the one whose maker calls it so."""
        found = self._db.execute("SELECT id FROM sandboxes WHERE key = ? AND key != ''", (key,)).fetchone()
        return None if found is None else found[0]

    def gone(self) -> list[Row]:
        """Those there were, the last one first."""
        return list(self._read("gone", "ORDER BY rowid DESC", ()))

    def last_gone(self, id: str) -> Row | None:
        """The last one that had this id, name, or beginning of an id."""
        found = self._read(
            "gone", "WHERE name = ?1 OR substr(id, 1, length(?1)) = ?1 ORDER BY rowid DESC LIMIT 1", (id,)
        )
        return next(found, None)

    def _read(self, table: str, where: str, values: tuple[Any, ...]) -> Iterator[Row]:
        for found in self._db.execute(f"SELECT {_NAMES} FROM {table} {where}", values).fetchall():
            row = Row(*found)
            yield row._replace(config=msgspec.json.decode(row.config))  # type: ignore[arg-type]

    def close(self) -> None:
        self._db.close()
