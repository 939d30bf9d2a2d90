"""Variables that change while a box lives: what its programs and shells get from now on.

In: the container's own environment, changes to it (None: no such variable). Out: the whole of it for a new process,
and the bash code that brings an open shell up to date. Kept in a file beside the box's other files, so that a node that
takes the box over knows them. Leaves telling open shells to session.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import msgspec

from rockroll.errors import UsageError
from rockroll.sandbox.config import ENV_KEY
from rockroll.sandbox.container.cgroup import MARK

Changes = Mapping[str, str | None]


class Environment:
    """container's own ◄── what rockroll tells (share.py), where the container says nothing ◄── changes, over all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own: dict[str, str] = {}
        try:
            self._changes: dict[str, str | None] = msgspec.json.decode(path.read_bytes(), type=dict[str, str | None])
        except (OSError, msgspec.DecodeError):
            self._changes = {}

    def begin(self, own: Mapping[str, str], told: Mapping[str, str]) -> dict[str, str]:
        """The container runs; returns the whole."""
        self._own = {**told, **own}
        return self.whole()

    def whole(self) -> dict[str, str]:
        """For a process that starts now."""
        return {key: value for key, value in {**self._own, **self._changes}.items() if value is not None}

    def change(self, changes: Changes) -> dict[str, str]:
        """Keeps the changes; returns the whole. UsageError for a name or value that no environment can carry."""
        check(changes)
        self._changes.update(changes)
        self._path.write_bytes(msgspec.json.encode(self._changes))
        return self.whole()

    def clear(self) -> dict[str, str]:
        """Forgets every change: the box's next user gets what the first one got."""
        self._changes = {}
        self._path.unlink(missing_ok=True)
        return self.whole()


def check(changes: Changes) -> None:
    for key, value in changes.items():
        if not ENV_KEY.fullmatch(key) or key == MARK:
            raise UsageError(f"env: a name is letters, digits and _, no digit first, and not {MARK}; got {key!r}")
        if value is not None and "\0" in value:
            raise UsageError(f"env: the value of {key} holds a NUL byte, which no environment can carry")


def as_bash(changes: Changes) -> bytes:
    """What an open shell runs, and keeps its $?. A variable that it has made readonly stays as it is."""
    lines = [
        # `||`: with set -e a readonly variable would end the shell.
        (f"\\builtin unset -v {key}" if value is None else f"\\builtin export {key}={shlex.quote(value)}")
        + " || \\builtin :"
        for key, value in changes.items()
    ]
    first = "_ROCKROLL_STATUS=$?"
    last = '\\builtin eval "\\builtin unset -v _ROCKROLL_STATUS; \\builtin return $_ROCKROLL_STATUS"'
    return ("\n".join([first, *lines, last]) + "\n").encode("utf-8", "surrogateescape")
