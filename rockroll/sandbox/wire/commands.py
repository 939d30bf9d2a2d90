"""What is run in a box: sessions, lines for them, programs; how each ended, and what is sent to one meanwhile.

In and out: plain values. Leaves how a box itself ended to boxes.py.
"""

from __future__ import annotations

from typing import Literal

from rockroll.sandbox.wire.base import Struct
from rockroll.sandbox.wire.boxes import Cause

Outcome = Literal["ok", "timeout", "closed", "oom", "killed", "lost"]
"""ok: ran to its end, whatever the exit code. timeout: killed at its limit. closed: the shell ended (`exit 3`).
oom: killed for memory. killed: ended by a signal from outside the command (cancelled, session closed, shell killed).
lost: the sandbox itself died."""

MAX_OUTPUT = 1 << 20
"""Bytes kept of each stream of one command unless the caller says otherwise."""

DEFAULT_SESSION = "default"


class SessionSpec(Struct, frozen=True):
    id: str
    session: str = DEFAULT_SESSION
    env: dict[str, str] = {}
    cwd: str | None = None


class SessionInfo(Struct, frozen=True):
    session: str
    pid: int
    """Of the shell, on the host; 0 when it is between two shells."""
    busy: bool
    created: float


class Run(Struct, frozen=True):
    id: str
    command: bytes
    session: str = DEFAULT_SESSION
    timeout: float | None = None
    """Seconds from the moment the shell is given the command; waiting for the session's turn does not count."""
    max_output: int = MAX_OUTPUT


class Execute(Struct, frozen=True):
    id: str
    argv: list[str]
    timeout: float | None = None
    env: dict[str, str] = {}
    cwd: str | None = None
    stdin: bytes = b""
    max_output: int = MAX_OUTPUT


class Observation(Struct, frozen=True):
    stdout: bytes
    stderr: bytes
    exit_code: int | None
    """None where no process ended by itself: timeout, lost. A signal's death is 128 + signal, as in a shell."""
    outcome: Outcome
    session_restarted: bool = False
    """A new shell was opened for this command or at its end: variables may be those of the command before."""
    truncated_bytes: int = 0
    """Bytes of both streams that were read and dropped over max_output."""
    duration_s: float = 0.0
    events: dict[str, int] = {}
    """Limits met while it ran that did not end it: "oom_kills", "pids_refused", each with how often (meter.py)."""
    cause: Cause | None = None
    """Where the outcome is "lost": how the sandbox ended."""

    @property
    def output(self) -> str:
        """Both streams as text: stdout, then stderr."""
        return (self.stdout + self.stderr).decode("utf-8", "replace")


class Start(Struct, frozen=True):
    """A command that goes on whatever becomes of who started it: a line for a session, or a program."""

    id: str
    command_id: str
    """Names it. Sent twice, it is run once."""
    command: bytes | None = None
    session: str = DEFAULT_SESSION
    argv: list[str] | None = None
    env: dict[str, str] = {}
    """Of a program; a session's is its own."""
    cwd: str | None = None
    stdin: bool = False
    """Whether it will be sent input; else it reads /dev/null."""
    timeout: float | None = None
    max_output: int = MAX_OUTPUT


class CommandRef(Struct, frozen=True):
    id: str
    command_id: str
    output: bool = True
    """Whether `command.wait` answers with what was printed, too."""


class CommandInfo(Struct, frozen=True):
    command_id: str
    session: str | None
    """None: a program without a shell."""
    text: str
    """The beginning of its first line."""
    state: Literal["queued", "running", "done"]
    begun: float
    """Unix time in seconds."""
    output_bytes: int
    """Kept of both streams so far."""
    outcome: Outcome | None = None
    exit_code: int | None = None


class ReadOutput(Struct, frozen=True):
    id: str
    command_id: str
    offset: int = 0
    follow: bool = True


class OutputChunk(Struct, frozen=True):
    offset: int
    """Of its first byte in the output of both streams, in order of arrival."""
    stream: Literal["stdout", "stderr"]
    data: bytes


class SendInput(Struct, frozen=True):
    id: str
    command_id: str
    data: bytes = b""
    end: bool = False
    """Closes the input after `data`."""


class SendSignal(Struct, frozen=True):
    id: str
    command_id: str
    signal: int


class Logs(Struct, frozen=True):
    id: str
    offset: int = 0
    follow: bool = False


class LogChunk(Struct, frozen=True):
    offset: int
    """Of the first byte of `data` in the sandbox's log; the next call's offset is offset + len(data)."""
    data: bytes
