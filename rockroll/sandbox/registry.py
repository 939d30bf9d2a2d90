"""Which sandboxes this home has, kept across nodes.

In and out: one Row for each sandbox, in SQLite (WAL) at node/registry.sqlite. Leaves what is true of them to host.py,
which compares with Podman at its start. A call is a few tens of microseconds: no disk is waited for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from rockroll.sandbox.wire import Owner


class Row(NamedTuple):
    id: str
    name: str
    config: dict[str, Any]
    owner: Owner
    container: str
    """Podman's id; "" until Podman has made it."""
    created: float


class Registry:
    """The table. Only the node writes; whoever likes may read it with any SQLite."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        # After a power cut the containers are gone as well: what the last second wrote need not survive it.
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS sandboxes (id TEXT PRIMARY KEY, name TEXT UNIQUE NOT NULL,"
            " config BLOB NOT NULL, owner TEXT NOT NULL, container TEXT NOT NULL, created REAL NOT NULL)"
        )

    def put(self, row: Row) -> None:
        """Adds or replaces."""
        values = (row.id, row.name, msgspec.json.encode(row.config), row.owner, row.container, row.created)
        self._db.execute("INSERT OR REPLACE INTO sandboxes VALUES (?, ?, ?, ?, ?, ?)", values)

    def drop(self, id: str) -> None:
        self._db.execute("DELETE FROM sandboxes WHERE id = ?", (id,))

    def rows(self) -> Iterator[Row]:
        for id, name, config, owner, container, created in self._db.execute(
            "SELECT id, name, config, owner, container, created FROM sandboxes"
        ).fetchall():
            yield Row(id, name, msgspec.json.decode(config), owner, container, created)

    def close(self) -> None:
        self._db.close()
