"""The runs that are shown.

In: run directories, or folders of them. Out: each run's name, recipe, rows of metrics, whether it is going on, and its
index of episodes. Leaves questions about episodes to episodes.py and pages to pages.py. Nothing here writes to a run
but its index.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rockroll.errors import UsageError
from rockroll.observe.index import EpisodeIndex
from rockroll.observe.metrics import Row, read_rows

T = TypeVar("T")


class Run:
    """One run directory."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.index = EpisodeIndex(path / "episodes")
        self.indexing: tuple[int, int] | None = None
        """(files done, files to do) while the index is being brought up to date."""
        self._lock = threading.Lock()
        self._known: tuple[tuple[Any, ...], dict[Any, Any]] = ((), {})
        self._rows: tuple[tuple[int, int], list[Row]] = ((0, 0), [])

    @property
    def rows(self) -> list[Row]:
        """Rows of metrics.jsonl, as they are now."""
        file = self.path / "metrics.jsonl"
        try:
            stat = file.stat()
            state = (stat.st_size, stat.st_mtime_ns)
            with self._lock:
                if self._rows[0] != state:
                    self._rows = (state, read_rows(file))
                return self._rows[1]
        except OSError:
            return []

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe; empty where it cannot be read."""
        try:
            found = yaml.safe_load(self.recipe_text)
        except yaml.YAMLError:
            found = None
        return found if isinstance(found, dict) else {}

    @cached_property
    def recipe_text(self) -> str:
        try:
            return (self.path / "recipe.yaml").read_text(errors="replace")
        except OSError:
            return ""

    @property
    def model(self) -> str:
        return str(self.recipe.get("model", "tiny"))

    @property
    def task(self) -> str:
        task = self.recipe.get("task")
        return str(task.get("env", "")) if isinstance(task, dict) else ""

    @property
    def going_on(self) -> bool:
        """Somebody holds the run's lock: a look into the kernel's list of locks, which disturbs nobody."""
        try:
            number = (self.path / ".lock").stat().st_ino
            locks = Path("/proc/locks").read_text()
        except OSError:
            return False
        # `1: FLOCK ADVISORY WRITE 4711 fe:00:1234 0 EOF`; btrfs and overlays show another device than stat does
        held = (line.split() for line in locks.splitlines())
        return any(words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(number) for words in held)

    def remembered(self, question: Any, answer: Callable[[sqlite3.Connection], T]) -> T:
        """The answer of the index, found once for as long as the index stays as it is."""
        with self.index.read() as database:
            state = tuple(database.execute("SELECT count(*), sum(size), max(mtime) FROM files").fetchone())
            known = self._known
            if known[0] != state:
                known = self._known = (state, {})
            if question not in known[1]:
                known[1][question] = answer(database)
            return known[1][question]

    def refreshing(self) -> Iterator[tuple[int, int]]:
        """Bring the index up to date: (files done, files to do). One at a time."""
        try:
            for state in self.index.refresh():
                self.indexing = state
                yield state
        finally:
            self.indexing = None


class Runs:
    """The runs by name, in the order in which they were given; those of a folder by age, and new ones as they come."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises UsageError for a path that is neither a run nor a folder of runs."""
        self.folders: list[Path] = []
        self._runs: dict[str, Run] = {}
        for path in paths:
            path = path.expanduser().absolute()
            if is_run(path):
                self._add(path)
            elif path.is_dir() and any(map(is_run, path.iterdir())):
                self.folders.append(path)
            else:
                raise UsageError(
                    f"RUN_DIR is a run's directory, or a folder of them; {path} has no recipe.yaml, and neither has a "
                    "folder in it (`rockroll train` prints the directory of its run)"
                )
        self.look()

    def look(self) -> list[Run]:
        """Take in runs that have come up in the folders; those that are new."""
        known = {run.path for run in self}
        found = [path for folder in self.folders for path in _runs_in(folder) if path not in known]
        return [self._add(path) for path in found]

    def _add(self, path: Path) -> Run:
        stem = path.name
        name, n = stem, 1
        while name in self._runs:
            n += 1
            name = f"{stem}-{n}"
        self._runs[name] = Run(path, name)
        return self._runs[name]

    def close(self) -> None:
        for run in self:
            run.index.close()

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, name: str) -> Run | None:
        return self._runs.get(name)

    def chosen(self, names: Iterable[str], most: int) -> list[Run]:
        """The runs of these names; without any, the last `most`."""
        wanted = [run for name in names if (run := self.get(name))]
        return (wanted or list(self)[-most:])[:most]


def is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file()


def _runs_in(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if is_run(path)]
    return sorted(found, key=lambda path: ((path / "recipe.yaml").stat().st_mtime, path.name))
