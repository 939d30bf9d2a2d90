"""A data set's examples by number, from files or from a class.

In: a path, or `module:Class` with options. Out: a length and a mapping for each number. A file's lines are found once
and read when they are asked for, so that a large one needs no memory. Leaves what an example means to forms.py.
"""

from __future__ import annotations

import importlib
import json
import sys
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rockroll.errors import UsageError

BUILT_IN = {
    "rockroll:shell_demonstrations": "rockroll.data.shell:Demonstrations",
    "rockroll:shell_preferences": "rockroll.data.shell:Preferences",
    "rockroll:demonstrations": "rockroll.data.demonstrations:Demonstrations",
}
"""Names of rockroll's own data sets, and where they are."""


class Examples(Protocol):
    """What a data set is: a sequence of mappings."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Mapping[str, Any]: ...


def find(path: str, options: Mapping[str, Any] | None = None) -> Examples:
    """The data set of that name or place. Raises UsageError where there is none, or none with an example."""
    place = BUILT_IN.get(path, path)
    module, colon, name = place.partition(":")
    made = _make(path, module, name, options or {}) if colon and "/" not in place else JsonLines(Path(path))
    if not len(made):
        raise UsageError(f"data: a data set has at least one example; {path} has none")
    return made


class JsonLines:
    """A .jsonl file, or every one in a folder, in the order of their names: one JSON object a line."""

    def __init__(self, path: Path) -> None:
        path = path.expanduser()
        self._files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not self._files:
            raise UsageError(f"data: a folder of a data set has .jsonl files; {path} has none")
        self._file, self._start, self._line = array("i"), array("q"), array("q")
        for number, file in enumerate(self._files):
            self._index(number, file)

    def _index(self, number: int, file: Path) -> None:
        try:
            with file.open("rb") as lines:
                at = 0
                for n, line in enumerate(lines, 1):
                    if line.strip():
                        self._file.append(number)
                        self._start.append(at)
                        self._line.append(n)
                    at += len(line)
        except OSError as error:
            raise UsageError(
                f"data: {file} cannot be read ({error.strerror}); name a .jsonl file, a folder of them, "
                f"{', '.join(BUILT_IN)} or module:Class"
            ) from None

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, number: int, /) -> dict[str, Any]:
        """Raises UsageError that names file and line where it is no JSON object."""
        with self._files[self._file[number]].open("rb") as lines:
            lines.seek(self._start[number])
            text = lines.readline()
        try:
            example = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{self.where(number)}: not JSON: {error}") from None
        if not isinstance(example, dict):
            raise UsageError(f"{self.where(number)}: an example is a JSON object; got {type(example).__name__}")
        return example

    def where(self, number: int) -> str:
        return f"{self._files[self._file[number]]}:{self._line[number]}"


def where(examples: Examples, path: str, number: int) -> str:
    """Names one example to a reader: file and line, or the data set and the number."""
    return examples.where(number) if isinstance(examples, JsonLines) else f"{path}, example {number}"


def _make(path: str, module_name: str, name: str, options: Mapping[str, Any]) -> Examples:
    if module_name == "rockroll":
        raise UsageError(f"data: rockroll's own data sets are {', '.join(sorted(BUILT_IN))}; got {path!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        made = getattr(importlib.import_module(module_name), name)(**options)
    except Exception as error:  # whatever a module or a constructor of the user's raises
        raise UsageError(f"data: {path} could not be made: {type(error).__name__}: {error}") from error
    if not (hasattr(made, "__len__") and hasattr(made, "__getitem__")):
        raise UsageError(f"data: a data set has a length and examples by number; {path} makes a {type(made).__name__}")
    return made
