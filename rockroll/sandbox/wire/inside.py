"""A look into a box from outside: its processes, their environment, a terminal.

In and out: plain values. Leaves commands and their output to commands.py.
"""

from __future__ import annotations

from rockroll.sandbox.wire.base import Struct


class ProcessInfo(Struct, frozen=True):
    """One process of a box, numbered and named as the box itself does."""

    pid: int
    parent: int
    """0: none in the box."""
    user: str
    """Its name in the box's /etc/passwd, else the uid."""
    command: str
    """The command line, at most 4,096 bytes of it; [name] where there is none."""
    state: str
    """R running, S sleeping, D waiting for a disk, T stopped, Z ended and not waited for."""
    cpu_s: float
    memory_bytes: int
    """Resident; pages that several processes share count for each."""
    session: str | None = None
    """The session that started it, or whose shell it is; None for init, programs and debug shells."""
    birth: int = 0
    """With `pid` it names this process for good."""


class Signal(Struct, frozen=True):
    id: str
    pid: int
    """As the box numbers it."""
    signal: str = "TERM"
    birth: int = 0
    """Of the process meant; 0: whoever has that pid now."""


class SetEnv(Struct, frozen=True):
    id: str
    changes: dict[str, str | None]
    """None: the variable is removed."""


class Terminal(Struct, frozen=True):
    """A shell on a terminal of its own."""

    id: str
    console: str = ""
    """A unix socket of the caller's, on this host: the terminal's master is sent there (SCM_RIGHTS), and held by nobody
    else, so that the shell is hung up when the caller dies. "" in terminal.open, where the node keeps it."""
    session: str | None = None
    """Begin with this session's state."""
    term: str = "xterm"
    rows: int = 24
    columns: int = 80


class TerminalEnd(Struct, frozen=True):
    exit_code: int
    note: str = ""
    """Why, where it did not end by itself."""


class TerminalInput(Struct, frozen=True):
    """A part of terminal.open: what was typed, and the window's size where that has changed."""

    data: bytes = b""
    rows: int = 0
    columns: int = 0


class TerminalOutput(Struct, frozen=True):
    """An item of terminal.open; the first one, empty, says that the shell is there."""

    data: bytes = b""
    end: TerminalEnd | None = None
    """Of the last one."""
