"""What a shell tells of itself after a command, off the caller's clock, and how a new shell is made to know it.

In: the bytes of its state FIFO. Out: `state`: its variables, functions, options and so on, whole or not at all. Leaves
when a command has ended to shell.py, and keeping the state on disk to saved.py.
"""

from __future__ import annotations

import asyncio
import os

from rockroll.sandbox.exec.place import Place, fifo
from rockroll.sandbox.exec.stream import READ, Sink

SOON_S = 0.001
"""bash takes about that long to tell."""
PART = 1 << 20
"""Bytes of state that are taken in one turn of the loop."""
LIMIT = 8 << 20
"""Variables and functions over this are not carried into a shell that must be replaced."""

SAVE = r"""{
\builtin printf '#%s %s\n' "$SHELLOPTS" "$BASHOPTS"
\builtin declare -p
\builtin declare -f
\builtin declare -F
\builtin alias -p
\builtin trap -p
\builtin umask -p
\builtin printf 'builtin cd -- %q\n#%s\n' "$PWD" "$1"
} >|PLACE/state 2>/dev/null
"""
"""Shell code; $1 is the id of the command before it, PLACE the folder as the box sees it."""


class Told:
    """nothing due ── expect ──► due ── all of it came ──► `state` is new; one that was overtaken is skipped"""

    def __init__(self, place: Place, uid: int) -> None:
        fifo(place.host / "state", uid, 0o600)
        # Read-write: no end of file while the shell only opens it now and then.
        self._fd = os.open(place.host / "state", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._saving = bytearray()
        self._overtaken = b""  # the last line of a state before the one due, where the next command was faster than we
        self._watched = False
        self._timer: asyncio.TimerHandle | None = None
        self.due = b""
        """The line at the end of the state that is still to come."""
        self.state = b""
        """After the last command whose state has arrived."""
        self.on_state: Sink = _nowhere

    def expect(self, id: bytes) -> None:
        """The command of this id has ended, and bash is about to tell."""
        self._overtaken = self.due or self._overtaken
        self.due = b"#" + id + b"\n"
        self._timer = self._loop.call_later(SOON_S, self.collect)

    def collect(self) -> None:
        """Takes the saved state if it is whole; else watches for the rest, so that the shell never waits for us."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        left = PART  # whoever floods this pipe must not keep us here
        try:
            while left > 0 and (data := os.read(self._fd, READ)):
                self._saving += data
                left -= len(data)
        except BlockingIOError:
            pass
        if self.due and self._saving.endswith(self.due):
            size = len(self._saving) - len(self.due)
            state = bytes(self._saving[:size])
            if self._overtaken:  # else the options of the one and the variables of the other would be mixed
                state = state.rpartition(self._overtaken)[2]
            self.state = state if len(state) <= LIMIT else b""
            self.on_state(self.state)
            self._saving.clear()
            self.due = self._overtaken = b""
        elif len(self._saving) > 2 * LIMIT:
            del self._saving[:LIMIT]
        if self.due and not self._watched:
            self._loop.add_reader(self._fd, self.collect)
            self._watched = True
        elif not self.due and self._watched:
            self._loop.remove_reader(self._fd)
            self._watched = False

    def died(self, *, told_to: bool) -> None:
        """The shell is dead; told_to: it ended as it was told, and nothing of it is to come back."""
        if self.due and self._fd >= 0:
            self.collect()  # it may have told its state and died before anybody looked
        if told_to:
            self.on_state(b"")

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._watched:
            self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1


def replay(state: bytes) -> bytes:
    """Shell code that brings a saved state back. Options come from the variables that list them: printing them as
    commands takes bash as long as all the rest."""
    if not state.startswith(b"#"):
        return state
    options, _, rest = state[1:].partition(b"\n")
    shell, _, shopts = options.partition(b" ")
    names = b" ".join(shopts.split(b":"))
    # What a new shell has set is unset first. `set -e` and its like come last: until then an assignment to a readonly
    # variable may fail. By then the state's own functions and aliases are there: hence \builtin.
    # What the shell inherits and the session had unset or no longer exported is not in the state.
    lines = [b"unset -v $(compgen -e)", b"shopt -u ${BASHOPTS//:/ }", b"shopt -s " + names]
    lines += [b"set +o braceexpand +o hashall +o interactive-comments", rest]
    lines += [b"\\builtin set -o " + name for name in shell.split(b":")]
    return b"\n".join(lines) + b"\n"


def _nowhere(_: bytes) -> None:
    """Nobody keeps it."""
