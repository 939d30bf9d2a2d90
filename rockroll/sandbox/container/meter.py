"""Limits met without death: how often the kernel refused or killed in a box while one command ran.

In: cgroup files that count. Out: {"oom_kills": 1, "pids_refused": 40}, only what is above zero. Leaves which files
those are to cgroup.py.

oom_kills     processes of the box that the kernel killed for its memory limit
pids_refused  forks and threads that it refused for the limit on processes

A counter belongs to a cgroup, not to a command: what two commands of one box meet at the same time is in both answers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from rockroll.sandbox.linux.kept import KeptFile


class Counter:
    """One number in a cgroup file. While it is used often the file stays open: reading it takes about a microsecond."""

    def __init__(self, name: str, path: Path | None, key: str) -> None:
        """name: of the event. path: None where this host has no such file. key: the word before the number."""
        self.name = name
        self._key = key.encode() + b" "
        self._file: KeptFile | None = None
        if path is not None:
            with contextlib.suppress(OSError):
                self._file = KeptFile(path)

    def raw(self) -> bytes:
        """The file; b"" where this host does not count that, or the group is gone."""
        try:
            return os.pread(self._file.fd(), 512, 0) if self._file else b""
        except OSError:
            return b""

    def number(self, raw: bytes) -> int:
        for line in raw.splitlines():
            if line.startswith(self._key):
                return int(line[len(self._key) :])
        return 0

    def __del__(self) -> None:
        # A box ends in a dozen ways, each of which drops its groups: none of them has to remember this.
        if self._file:
            self._file.close()


class Meter:
    """What counters have counted since `begin`."""

    def __init__(self, counters: Sequence[Counter] = ()) -> None:
        self._counters = counters
        self._before: list[bytes] = [b""] * len(counters)

    def begin(self) -> None:
        self._before = [counter.raw() for counter in self._counters]

    def events(self) -> dict[str, int]:
        """By name, without zeros. Files are compared as they are: only one that has changed is parsed."""
        found: dict[str, int] = {}
        for counter, before in zip(self._counters, self._before, strict=True):
            now = counter.raw()
            if now == before or not now:
                continue
            grown = counter.number(now) - counter.number(before)
            if grown > 0:
                found[counter.name] = found.get(counter.name, 0) + grown
        return found
