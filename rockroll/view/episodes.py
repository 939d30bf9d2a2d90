"""Questions about a run's episodes.

In: filters as a page's address says them. Out: rows of the index, counts, groups and their spread, one whole record.
Leaves how they look to pages.py. Every answer but `record` is one question to SQLite.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import DecodeError, json

from rockroll.view.runs import Run

PAGE = 50
"""Episodes on one page of the list."""
BROKEN = ("env_error", "infra_error", "timeout")
ORDERS = {
    "newest": "step DESC, number DESC",
    "first": "step, number",
    "best": "reward DESC, number",
    "worst": "reward IS NULL, reward, number",
    "longest": "tokens DESC, number",
    "slowest": "duration DESC, number",
}
Where = tuple[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which episodes; empty and None: any."""

    split: str = ""
    outcome: str = ""
    cause: str = ""
    task: str = ""
    step: int | None = None
    group: int | None = None
    text: str = ""
    """Part of an id or a detail."""
    order: str = "newest"
    page: int = 1

    def where(self, *, without: str = "") -> Where:
        """The condition in SQL; without: a field that is not to count."""
        said: list[str] = []
        values: list[Any] = []
        for field, column in (
            ("split", "split"),
            ("outcome", "outcome"),
            ("cause", "cause"),
            ("task", "task"),
            ("step", "step"),
            ("group", "grp"),
        ):
            value = getattr(self, field)
            if value not in ("", None) and field != without:
                said.append(f"{column} = ?")
                values.append(value)
        if self.text:
            said.append("(instr(id, ?) OR instr(detail, ?))")
            values += [self.text, self.text]
        return " AND ".join(said) or "1", values


@dataclass(frozen=True)
class Group:
    """What the episodes of one task and seed earned."""

    step: int
    number: int
    task: str
    seed: int
    members: list[sqlite3.Row]

    @property
    def rewards(self) -> list[float]:
        return [row["reward"] for row in self.members if row["reward"] is not None]

    @property
    def mean(self) -> float:
        return sum(self.rewards) / len(self.rewards) if self.rewards else 0.0

    @property
    def deviation(self) -> float:
        """Of the population, as group advantages divide by it."""
        rewards, mean = self.rewards, self.mean
        return (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5 if rewards else 0.0


class Episodes:
    """The episodes of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def list(self, asked: Filter) -> tuple[int, list[sqlite3.Row]]:
        """(how many match, those of the page asked for)."""
        where, values = asked.where()
        order = ORDERS.get(asked.order, ORDERS["newest"])
        with self._run.index.read() as database:
            (found,) = database.execute(f"SELECT count(*) FROM episodes WHERE {where}", values).fetchone()
            rows = database.execute(
                f"SELECT * FROM episodes WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?",
                [*values, PAGE, PAGE * max(0, asked.page - 1)],
            ).fetchall()
        return found, rows

    def counts(self, field: str, asked: Filter | None = None) -> dict[str, int]:
        """How many episodes there are by split, outcome, cause or task, all else as in `asked`."""
        assert field in ("split", "outcome", "cause", "task")
        where, values = (asked or Filter()).where(without=field)

        def count(database: sqlite3.Connection) -> dict[str, int]:
            rows = database.execute(
                f"SELECT {field}, count(*) FROM episodes WHERE {where} AND {field} IS NOT NULL GROUP BY {field}", values
            )
            return {str(name): n for name, n in rows if name}

        if where == "1":
            return self._run.remembered(("counts", field), count)
        with self._run.index.read() as database:
            return count(database)

    def steps(self) -> list[int]:
        """Those that have records of trained episodes."""

        def find(database: sqlite3.Connection) -> list[int]:
            rows = database.execute("SELECT DISTINCT step FROM episodes WHERE split = 'train' ORDER BY step")
            return [step for (step,) in rows]

        return self._run.remembered("steps", find)

    def groups(self, step: int) -> list[Group]:
        """Of one training step."""
        with self._run.index.read() as database:
            rows = database.execute(
                "SELECT * FROM episodes WHERE split = 'train' AND step = ? ORDER BY grp, place", (step,)
            ).fetchall()
        by: dict[int, list[sqlite3.Row]] = {}
        for row in rows:
            by.setdefault(row["grp"], []).append(row)
        return [Group(step, n, members[0]["task"], members[0]["seed"], members) for n, members in by.items()]

    def group(self, row: sqlite3.Row) -> list[sqlite3.Row]:
        """The episodes that were compared with this one, itself among them."""
        with self._run.index.read() as database:
            return database.execute(
                "SELECT * FROM episodes WHERE split = ? AND step = ? AND grp = ? ORDER BY place",
                (row["split"], row["step"], row["grp"]),
            ).fetchall()

    def spread(self) -> list[tuple[int, float, float]]:
        """(step, mean standard deviation of its groups, share of groups whose episodes all earned the same)."""
        return self._run.remembered("spread", _spread)

    def failures(self, most: int = 100) -> Sequence[sqlite3.Row]:
        """What broke, the most frequent first: outcome, cause, detail, how often, and the last episode's place."""
        marks = ", ".join("?" * len(BROKEN))
        with self._run.index.read() as database:
            return database.execute(
                f"SELECT outcome, cause, detail, count(*) AS times, file, line, max(number) FROM episodes"
                f" WHERE outcome IN ({marks}) GROUP BY outcome, cause, detail ORDER BY times DESC LIMIT ?",
                (*BROKEN, most),
            ).fetchall()

    def at(self, file: str, line: int) -> sqlite3.Row | None:
        with self._run.index.read() as database:
            return database.execute("SELECT * FROM episodes WHERE file = ? AND line = ?", (file, line)).fetchone()

    def named(self, id: str) -> sqlite3.Row | None:
        """The last episode of that id: a resumed run's evaluations may have an id once more."""
        with self._run.index.read() as database:
            return database.execute(
                "SELECT * FROM episodes WHERE id = ? ORDER BY number DESC LIMIT 1", (id,)
            ).fetchone()

    def raw(self, row: sqlite3.Row) -> bytes:
        """The record's own line; b"" where the file has changed since it was indexed."""
        try:
            with (self._run.path / "episodes" / row["file"]).open("rb") as file:
                file.seek(row["offset"])
                return file.read(row["length"])
        except OSError:
            return b""

    def record(self, row: sqlite3.Row) -> dict[str, Any] | None:
        """The whole record; None where the file has changed since it was indexed: it will be indexed again."""
        try:
            found = json.decode(self.raw(row))
        except DecodeError:
            return None
        return found if isinstance(found, dict) and found.get("id") == row["id"] else None


def _spread(database: sqlite3.Connection) -> list[tuple[int, float, float]]:
    rows = database.execute(
        "SELECT step, avg(reward * reward) - avg(reward) * avg(reward), max(reward) = min(reward)"
        " FROM episodes WHERE split = 'train' GROUP BY step, grp"
    )
    by: dict[int, list[tuple[float, int]]] = {}
    for step, variance, same in rows:
        if variance is not None:
            by.setdefault(step, []).append((max(0.0, variance) ** 0.5, same))
    return [
        (step, sum(d for d, _ in groups) / len(groups), sum(s for _, s in groups) / len(groups))
        for step, groups in sorted(by.items())
    ]
