"""Other people's trackers, fed with the rows of metrics.jsonl: each in a file of its own, imported only when asked for.

In: names from the recipe, rows. Out: the same numbers where each tracker's own settings say. Leaves metrics.jsonl and
TensorBoard's files to metrics.py: those are what is true. A tracker that fails, hangs or has no network never stops a
run: it is said once, and the run goes on without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import yaml

from rockroll.errors import UsageError
from rockroll.observe.metrics import Row

_log = logging.getLogger(__name__)
BUILT_IN = "tensorboard"
PACKAGES = {"trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow"}
"""Trackers, each with the package it needs; tensorboard is written by metrics.py."""
NAMES = (BUILT_IN, *PACKAGES)
FOLDER = "track"
_CLOSE_S, _STOP_S = 30.0, 5.0
"""How long the end of a run waits for a tracker to send what is left; of one that was stopped."""


MOST = 4096
"""Rows that wait for a tracker, some 20 MB."""


class Tracker(Protocol):
    """One tracker's run. Made, used and closed in one thread; whatever it raises is told, and it is left out."""

    def write(self, row: Row) -> None:
        """One step's numbers, once, steps ascending."""
        ...

    def close(self, ok: bool) -> None:
        """Returns when all of it is sent, or on the disk. ok: the run came to its end."""
        ...


def require(names: Sequence[str]) -> None:
    """UsageError, before anything starts, where a tracker's package is missing or it could not log in."""
    for name in names:
        if name == BUILT_IN:
            continue
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UsageError(f"track: {name} needs the Python package {PACKAGES[name]}: pip install {PACKAGES[name]}")
        if (ready := getattr(_module(name), "ready", None)) is not None:
            ready()


class Trackers:
    """All trackers of a run but TensorBoard's files. `with Trackers(…) as trackers: trackers.write(row)`.

    say: told one line where a tracker is left out. Each tracker has a thread: nobody waits for it to open or send.
    """

    def __init__(self, names: Sequence[str], run_dir: Path, *, name: str, say: Callable[[str], None]) -> None:
        self._each = [_Sender(each, run_dir, name, say) for each in dict.fromkeys(names) if each != BUILT_IN]

    def write(self, row: Row) -> None:
        """Returns at once."""
        for each in self._each:
            each.put(dict(row))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for each in self._each:
            each.rows.put(kind is None)
        for each in self._each:
            each.join(_CLOSE_S if kind is None else _STOP_S)


class _Sender:
    """One tracker in its thread: rows in order, then whether the run ended well."""

    def __init__(self, name: str, run_dir: Path, run_name: str, say: Callable[[str], None]) -> None:
        self.rows: queue.SimpleQueue[Row | bool] = queue.SimpleQueue()
        self._name, self._say = name, say
        self._left_out = False
        self._run_dir, self._run_name = run_dir, run_name
        self._thread = threading.Thread(target=self._run, name=f"track-{name}", daemon=True)
        self._thread.start()

    def put(self, row: Row) -> None:
        """Returns at once. A tracker that takes none for long is left out: its rows would fill the memory."""
        if self._left_out:
            return
        if self.rows.qsize() < MOST:
            self.rows.put(row)
        else:
            self._tell(f"it has taken none of the last {MOST:,} rows")

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive() and not self._left_out:
            self._tell(f"it has not sent everything within {seconds:.0f} s of the run's end")

    def _run(self) -> None:
        try:
            recipe = yaml.safe_load((self._run_dir / "recipe.yaml").read_text())
            tracker: Tracker = _module(self._name).open_run(self._run_dir / FOLDER, self._run_name, recipe)
            while not isinstance(row := self.rows.get(), bool):
                tracker.write(row)
            tracker.close(row)
        except Exception as error:  # noqa: BLE001 - of any package, of any kind
            said = str(error).strip().splitlines() or [""]
            self._tell(f"{type(error).__name__}: {said[0][:300]}")

    def _tell(self, why: str) -> None:
        self._left_out = True
        line = f"track: {self._name} is left out from here on: {why}; metrics.jsonl has every row"
        _log.warning("%s", line)
        self._say(line)


def identity(folder: Path, name: str) -> tuple[str, bool]:
    """The id under which this tracker knows the run, and whether it had one before: a resumed run goes on with it."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.id"
    if file.exists():
        return file.read_text().strip(), True
    id = secrets.token_hex(4)
    file.write_text(id + "\n")
    return id, False


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's values by dotted key, for trackers that know no nested ones."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def numbers(row: Row) -> dict[str, float]:
    """A row without its step."""
    return {key: float(value) for key, value in row.items() if key != "step"}


def _module(name: str) -> Any:
    return importlib.import_module(f"rockroll.observe.trackers.{name}_run")
