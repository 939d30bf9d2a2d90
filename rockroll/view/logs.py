"""What the processes of a run said.

In: a run, and a time. Out: the ends of its logs, and their lines around that time. Leaves writing them, one record a
line with its time first, to rockroll/logs.py.
"""

from __future__ import annotations

import time
from pathlib import Path

from rockroll import home
from rockroll.view.runs import Run
from rockroll.view.text import visible

NODE = "node.log"
_TAIL = 512 << 10
"""Bytes of a log that are looked at."""


def names(run: Run) -> list[str]:
    """The run's own logs, with what was before them where they were full (.log.1), and the node's, which has the
    sandboxes of every run of this home."""
    found = sorted(path.name for path in run.path.glob("rockroll.log*") if path.suffix in (".log", ".1"))
    found += sorted(path.name for path in (run.path / "logs").glob("*.log*") if path.suffix in (".log", ".1"))
    return found + ([NODE] if (home.node_dir() / NODE).exists() else [])


def tail(run: Run, name: str, lines: int = 400) -> list[str]:
    """The last lines of a log of `names`; empty for another name."""
    return _lines(_path(run, name))[-lines:] if name in names(run) else []


def around(run: Run, begin: float, end: float, most: int = 60) -> list[tuple[str, list[str]]]:
    """(log, its lines of that time), seconds since 1970; logs that said nothing are left out. Of more than `most`
    lines the last are taken: they tell how it ended."""
    first, last = _stamp(begin - 1), _stamp(end + 2)
    found: list[tuple[str, list[str]]] = []
    for name in names(run):
        inside: list[str] = []
        taking = False
        for line in _lines(_path(run, name)):
            if line[:4].isdigit():
                taking = first <= line[:19] <= last
            if taking:  # a traceback's lines have no time, and belong to the line before
                inside.append(line)
        if inside:
            found.append((name, inside[-most:]))
    return found


def _path(run: Run, name: str) -> Path:
    if name == NODE:
        return home.node_dir() / NODE
    return run.path / name if name.startswith("rockroll.log") else run.path / "logs" / name


def _lines(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            data = file.read()
    except OSError:
        return []
    lines = data.decode("utf-8", "replace").split("\n")
    return [visible(line) for line in lines[1 if size > _TAIL else 0 :] if line]


def _stamp(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
