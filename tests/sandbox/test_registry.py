"""What the registry promises: it outlives its writer, knows older schemas, and remembers the dead."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rockroll.errors import HostError
from rockroll.sandbox.boxes import registry
from rockroll.sandbox.boxes.registry import Registry, Row


def row(id: str, **more: object) -> Row:
    return Row(id, f"box-{id}", {"memory": "64m"}, "detached", "c" + id, 1.0, state="running")._replace(**more)


def test_rows_are_kept_and_marked(tmp_path: Path) -> None:
    first = Registry(tmp_path / "r")
    first.put(row("a"))
    first.mark("a", "exited", "oom", 5.0)
    first.close()
    assert Registry(tmp_path / "r").rows() == [row("a", state="exited", cause="oom", ended=5.0)]


def test_the_gone_are_remembered_by_id_prefix_and_name_with_the_cause_they_died_of(tmp_path: Path) -> None:
    kept = Registry(tmp_path / "r")
    kept.put(row("abc"))
    kept.put(row("xyz"))
    kept.mark("xyz", "exited", "oom", 5.0)
    kept.drop("abc", "ttl", 7.0)
    kept.drop("xyz", "deleted", 9.0)
    assert kept.rows() == []
    for reference in ("abc", "ab", "box-abc"):
        found = kept.last_gone(reference)
        assert found and (found.cause, found.ended, found.state) == ("ttl", 7.0, "gone")
    assert [(each.id, each.cause, each.ended) for each in kept.gone()] == [("xyz", "oom", 5.0), ("abc", "ttl", 7.0)]
    assert kept.last_gone("nothing") is None


def test_a_sandbox_that_never_came_to_be_is_not_remembered(tmp_path: Path) -> None:
    kept = Registry(tmp_path / "r")
    kept.put(row("a", state="starting"))
    kept.drop("a", "deleted", 1.0)
    assert kept.rows() == kept.gone() == []


def test_only_the_last_thousand_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "GONE_KEPT", 3)
    kept = Registry(tmp_path / "r")
    for number in range(6):
        kept.put(row(f"{number}"))
        kept.drop(f"{number}", "deleted", 1.0)
    assert [each.id for each in kept.gone()] == ["5", "4", "3"]


def test_a_name_is_free_again_once_its_sandbox_is_gone(tmp_path: Path) -> None:
    kept = Registry(tmp_path / "r")
    for id in ("a", "b"):
        kept.put(row(id, name="same"))
        kept.drop(id, "deleted", 1.0)
    found = kept.last_gone("same")
    assert found and found.id == "b"


def test_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "r", isolation_level=None)
    old.execute(
        "CREATE TABLE sandboxes (id TEXT PRIMARY KEY, name TEXT UNIQUE NOT NULL, config BLOB NOT NULL,"
        " owner TEXT NOT NULL, container TEXT NOT NULL, created REAL NOT NULL)"
    )
    old.execute("INSERT INTO sandboxes VALUES ('a', 'box-a', ?, 'detached', 'ca', 1.0)", (b'{"memory":"64m"}',))
    old.close()
    assert Registry(tmp_path / "r").rows() == [row("a")]


def test_the_second_schema_is_taken_over_with_who_owns_what_and_with_the_dead(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "r", isolation_level=None)
    columns = registry._COLUMNS.removesuffix(", key TEXT NOT NULL DEFAULT ''")
    for table, id in (("sandboxes", "a"), ("gone", "b")):
        old.execute(f"CREATE TABLE {table} ({columns})")
        values = (id, f"box-{id}", b'{"memory":"64m"}', "detached", "c" + id, 1.0, 7, 8, "exited", "oom", 5.0)
        old.execute(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    old.execute("PRAGMA user_version = 2")
    old.close()
    kept = Registry(tmp_path / "r")
    ended = {"owner_pid": 7, "owner_birth": 8, "state": "exited", "cause": "oom", "ended": 5.0}
    assert (kept.rows(), kept.gone()) == ([row("a", **ended)], [row("b", **ended)])


def test_one_is_found_by_the_key_of_its_maker_while_it_is_there(tmp_path: Path) -> None:
    kept = Registry(tmp_path / "r")
    kept.put(row("a", key="mine"))
    kept.put(row("b"))
    assert (kept.keyed("mine"), kept.keyed("another"), kept.keyed("")) == ("a", None, None)
    kept.drop("a", "deleted", 1.0)
    assert kept.keyed("mine") is None


def test_a_newer_schema_is_not_touched(tmp_path: Path) -> None:
    newer = sqlite3.connect(tmp_path / "r")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(HostError, match="schema 99"):
        Registry(tmp_path / "r")


def test_what_was_written_survives_sigkill_of_the_writer(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from rockroll.sandbox.boxes.registry import Registry, Row\n"
        "r = Registry(Path(sys.argv[1]))\n"
        "for n in range(50): r.put(Row(str(n), f'box-{n}', {}, 'detached', '', 1.0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "r")], env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    assert len(Registry(tmp_path / "r").rows()) == 50
