"""One bash in one sandbox, driven from outside it through FIFOs, with no software in the box but bash itself.

In: command text, of any length. Out: its exact bytes on two streams and its true exit code, or the news that the shell
has died. Leaves turns, timeouts and new shells to session.py.

    host                                         sandbox
    text ──► PLACE/cmd (read-only there) ──────► . PLACE/cmd >|PLACE/out 2>|PLACE/err </dev/null
    typed lines ──► pipe ──────────────────────► stdin of `bash -i`: the line above, then `. PLACE/r <random id> $?`
    out, err ◄── FIFOs ◄─────────────────────── opened by the shell for this command alone
    ctl ◄── FIFO ◄───────────────────────────── PLACE/r: `<random id> $?`
    state ◄── FIFO ◄─────────────────────────── PLACE/r: declare -p and the like, off the caller's clock

Why it holds: the report is a second typed line, so whatever throws the shell back to its prompt (a syntax error,
${x:?}, SIGINT) still reports; it returns the command's status, so that the next command finds its $?. bash reads typed
lines one byte at a time, a system call each: what can be in a file is. The FIFOs are opened by path, so no private
descriptor is inherited by what the command starts, closed by `exec 200>&-` or lost under `ulimit -n`. Once the report
is here, this command's output is in the pipes; a stream that then has no writer left is used again, and one that a
background job still holds is drained into the log while the next command gets a new one: output is never given to the
wrong command. Words are typed with a backslash, against aliases. A function named `builtin`, or `enable -n`, can
silence a shell; then its timeout ends it.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import importlib.resources
import os
import secrets
import shutil
import termios
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from rockroll.errors import SessionError
from rockroll.sandbox.container.cgroup import Scope
from rockroll.sandbox.container.oci_exec import NotStarted, OciExec
from rockroll.sandbox.exec.feed import Feed
from rockroll.sandbox.exec.stateless import Surroundings
from rockroll.sandbox.linux.kept import KeptFile
from rockroll.sandbox.linux.process import Process

OPEN_TIMEOUT_S = 20.0
READ = 1 << 18
REGISTER_AFTER_S = 0.001
"""A stream is watched only once a command is older than this: most are not, and watching costs four system calls."""
REPORTS = 512
"""Bytes: many times a report. Who fills the control pipe with more is heard again after FLOOD_S, so that a box that
floods it takes neither the node's processor nor its neighbours' time."""
FLOOD_S = 0.02
STATE_PART = 1 << 20
"""Bytes of state that are taken in one turn of the loop."""
STATE_LIMIT = 8 << 20
"""Variables and functions over this are not carried into a shell that must be replaced."""

_PRELUDE = importlib.resources.files("rockroll.sandbox.exec").joinpath("prelude.sh").read_bytes()
_REPORT = r"""\builtin printf '%s %d\n' "$1" "$2" >|PLACE/ctl
"""
_SAVE = r"""{
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
_RETURN = r"""\builtin return "$2"
"""

Sink = Callable[[bytes], None]


class Place(NamedTuple):
    """One folder under its two names."""

    host: Path
    inside: str


class Verdict(NamedTuple):
    """How a command ended: its exit code, or, where `died`, the shell's own (negative: a signal; None: unknown)."""

    died: bool
    code: int | None


class _Stream:
    """A data FIFO's reading end: stdout or stderr of the commands of one shell, one after the other."""

    def __init__(self, place: Place, name: str, uid: int, background: Sink) -> None:
        self._place, self._name, self._uid, self._background = place, name, uid, background
        self._loop = asyncio.get_running_loop()
        self._turn = 0
        self._fd = -1
        self._watched = False
        self._old: dict[int, Path] = {}
        self.sink: Sink = background
        self._renew()

    @property
    def path(self) -> str:
        """As the shell opens it."""
        return f"{self._place.inside}/{self._name}{self._turn}"

    def _renew(self) -> None:
        self._turn += 1
        self._file = self._place.host / f"{self._name}{self._turn}"
        # Write access for every user of the box: /dev/stdout must work after `su`. It is listed for none but root.
        _fifo(self._file, self._uid, 0o622)
        self._fd = os.open(self._file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self) -> None:
        """Reads as it comes, from now to the report."""
        # A FIFO whose last writer is gone is at its end until opened afresh; the old end stays open until then, for
        # with no end open at all the bytes in it would be lost.
        fresh = os.open(self._file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.close(self._fd)
        self._fd = fresh
        self._loop.add_reader(fresh, self._on_data)
        self._watched = True

    def _on_data(self) -> None:
        try:
            data = os.read(self._fd, READ)
        except BlockingIOError:
            return
        if data:
            self.sink(data)
        else:  # the command has closed it and will report in a moment: no more to see, and no busy loop
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watched:
            self._loop.remove_reader(self._fd)
            self._watched = False

    def finish(self) -> None:
        """At the report: takes what is in the pipe, and leaves the pipe to a background job that holds it."""
        late: bytes | None = b""
        try:
            if data := os.read(self._fd, READ):
                self.sink(data)
                if len(data) == READ:  # somebody has made the pipe larger
                    self._take(_waiting(self._fd))
                late = os.read(self._fd, READ)
        except BlockingIOError:
            late = None
        if late == b"":
            self._unwatch()
        else:
            self._hand_over(late or b"")
        self.sink = self._background

    def _take(self, waiting: int) -> None:
        while waiting > 0:
            data = os.read(self._fd, min(waiting, READ))
            if not data:
                return
            waiting -= len(data)
            self.sink(data)

    def _hand_over(self, late: bytes) -> None:
        """A job of the finished command goes on writing: into the log, through the pipe that it has."""
        self._background(late)
        fd = self._fd
        self._unwatch()
        self._old[fd] = self._file
        self._loop.add_reader(fd, self._on_background, fd)
        self._renew()

    def _on_background(self, fd: int) -> None:
        try:
            data = os.read(fd, READ)
        except BlockingIOError:
            return
        if data:
            self._background(data)
        else:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        os.close(fd)
        self._old.pop(fd).unlink(missing_ok=True)

    def drain(self) -> None:
        """What is left when the shell has died."""
        self._take(_waiting(self._fd))
        self._unwatch()

    def close(self) -> None:
        self._unwatch()
        os.close(self._fd)
        for fd in list(self._old):
            self._drop(fd)


class Shell:
    """starting ──► idle ◄──► busy ──► dead. One command at a time; the caller keeps the turns."""

    def __init__(self, place: Place, uid: int, log: Sink) -> None:
        """place: an empty folder of its own. uid: the shell's user as this host numbers it. log: background output."""
        self._loop = asyncio.get_running_loop()
        self._place, self._uid = place, uid
        place.host.mkdir(mode=0o700)
        self._process: Process | None = None
        self._fds: list[int] = []
        os.chown(place.host, uid, -1)
        self._make_file("cmd", b"")
        self._command = KeptFile(place.host / "cmd", os.O_RDWR)
        _fifo(place.host / "ctl", uid, 0o600)
        _fifo(place.host / "state", uid, 0o600)
        # Read-write, so that neither end ever sees an end of file while the shell only opens them now and then.
        self._control = self._keep_open(os.open(place.host / "ctl", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        self._state = self._keep_open(os.open(place.host / "state", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        self._typing = -1
        self._out = _Stream(place, "o", uid, log)
        self._err = _Stream(place, "e", uid, log)
        self._id = b""
        self._partial = b""
        self._saving = bytearray()
        self._written = 0
        self._saves = True
        self._unsaved = b""  # the line at the end of the state that is still to come
        self._overtaken = b""  # the same of a state before it, where the next command was faster than we
        self._state_watched = False
        self._timer: asyncio.TimerHandle | None = None
        self._state_timer: asyncio.TimerHandle | None = None
        self._quiet: asyncio.TimerHandle | None = None
        for name, script in (("r", _REPORT + _SAVE + _RETURN), ("q", _REPORT + _RETURN)):
            self._make_file(name, script.replace("PLACE", place.inside).encode())
        self._surroundings: tuple[bytes, Surroundings] = b"", Surroundings(b"")
        self.state = b""
        """Variables, functions, options and so on after the last command whose state has arrived."""
        self.on_state: Sink = _nowhere
        """Given each new state; b"" when the shell ends because it was told to."""
        self.verdict: asyncio.Future[Verdict] = self._loop.create_future()
        self._loop.add_reader(self._control, self._on_control)

    @property
    def pid(self) -> int:
        """On the host; 0 before it started."""
        return self._process.pid if self._process else 0

    @property
    def dead(self) -> bool:
        return self._process is None or self._process.ended.done()

    async def open(
        self, execer: OciExec, scope: Scope, *, env: Mapping[str, str], cwd: str | None, state: bytes = b""
    ) -> None:
        """Starts bash, with the state of an earlier shell if there is one. Raises SessionError; close() it then."""
        async with execer.starts:
            self._process = await self._spawn(execer, scope, env, cwd)
        self._process.ended.add_done_callback(self._on_death)
        self._make_file("prelude", _PRELUDE + replay(state))
        silent = self.begin(b". " + os.fsencode(f"{self._place.inside}/prelude") + b" 2>/dev/null", _nowhere, _nowhere)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                verdict = await silent
        except TimeoutError:
            raise SessionError(f"bash did not answer within {OPEN_TIMEOUT_S:g} s of its start") from None
        if verdict.died:
            raise SessionError(f"bash ended at its start with {verdict.code}; is the image's bash whole?")

    async def _spawn(self, execer: OciExec, scope: Scope, env: Mapping[str, str], cwd: str | None) -> Process:
        stdin, typing = os.pipe2(os.O_CLOEXEC)
        self._typing = self._keep_open(typing)
        os.set_blocking(typing, False)
        try:
            null = execer.null()
        except BaseException:
            os.close(stdin)
            raise
        try:
            argv = ["bash", "--noprofile", "--norc", "--noediting", "-i"]
            return await execer.spawn(argv, scope, stdin=stdin, stdout=null, stderr=null, env=env, cwd=cwd)
        except NotStarted as error:
            raise SessionError(f"no shell can be opened: {error.message}") from None
        finally:
            os.close(stdin)
            os.close(null)

    def begin(self, command: bytes, out: Sink, err: Sink, feed: Feed | None = None) -> asyncio.Future[Verdict]:
        """Gives the shell a command. The future is this object's `verdict`: await it shielded, or not cancelled.

        feed: what will write its standard input; without, it reads /dev/null.
        """
        self.verdict = self._loop.create_future()
        self._out.sink, self._err.sink = out, err
        if self.dead:
            self.verdict.set_result(self._death())
            return self.verdict
        if self._unsaved:
            self._collect_state()
        _write(self._command.fd(), command, self._written)
        self._written = len(command)
        self._saves = bool(self._unsaved) or not self._unchanged_by(command)
        self._id = secrets.token_urlsafe(12).encode()
        place = self._place.inside
        stdin = self._input(feed) if feed else "/dev/null"
        typed = (
            f"\\builtin . {place}/cmd >|{self._out.path} 2>|{self._err.path} <{stdin}\n"
            f'\\builtin . {place}/{"r" if self._saves else "q"} {self._id.decode()} "$?"\n'
        )
        try:
            os.write(self._typing, typed.encode())
        except BrokenPipeError:
            return self.verdict  # it has just died; its pidfd will say so
        self._timer = self._loop.call_later(REGISTER_AFTER_S, self._watch)
        return self.verdict

    def _unchanged_by(self, command: bytes) -> bool:
        if self._surroundings[0] is not self.state:
            self._surroundings = self.state, Surroundings(self.state)
        return self._surroundings[1].unchanged_by(command)

    def _input(self, feed: Feed) -> str:
        """A FIFO of this command's own, as the shell opens it."""
        name = f"i{self._id.decode()}"
        _fifo(self._place.host / name, self._uid, 0o600)
        feed.through_fifo(self._place.host / name)
        return f"{self._place.inside}/{name}"

    def _watch(self) -> None:
        self._out.watch()
        self._err.watch()

    def _on_control(self) -> None:
        try:
            read = os.read(self._control, REPORTS)
        except BlockingIOError:
            return
        if len(read) == REPORTS:
            self._loop.remove_reader(self._control)
            self._quiet = self._loop.call_later(FLOOD_S, self._loop.add_reader, self._control, self._on_control)
        data = self._partial + read
        *lines, self._partial = data.split(b"\n")
        self._partial = self._partial[-128:]  # a report is short; whoever floods this pipe gets no memory of ours
        for line in lines:
            number, _, code = line.partition(b" ")
            # Only this command's id counts: nothing printed, and nothing left from before, is a result.
            if number == self._id and code.isdigit() and not self.verdict.done():
                self._finish(Verdict(False, int(code)))

    def _finish(self, verdict: Verdict) -> None:
        if self._saves:
            self._overtaken = self._unsaved or self._overtaken
            self._unsaved = b"#" + self._id + b"\n"
            self._state_timer = self._loop.call_later(REGISTER_AFTER_S, self._collect_state)
        self._id = b""
        if self._timer:
            self._timer.cancel()
        try:
            self._out.finish()
            self._err.finish()
        finally:
            self.verdict.set_result(verdict)

    def _on_death(self, status: asyncio.Future[int | None]) -> None:
        if self._timer:
            self._timer.cancel()
        if self._unsaved and self._fds:
            self._collect_state()  # it may have told its state and died before anybody looked
        if status.result() is not None and status.result() >= 0:  # type: ignore[operator]
            self.on_state(b"")
        if not self.verdict.done():
            self._out.drain()
            self._err.drain()
            self.verdict.set_result(self._death())

    def _death(self) -> Verdict:
        return Verdict(True, self._process.ended.result() if self._process else None)

    def _collect_state(self) -> None:
        """Takes the saved state if it is whole; else watches for the rest, so that the shell never waits for us."""
        if self._state_timer:
            self._state_timer.cancel()
            self._state_timer = None
        left = STATE_PART  # whoever floods this pipe must not keep us here
        try:
            while left > 0 and (data := os.read(self._state, READ)):
                self._saving += data
                left -= len(data)
        except BlockingIOError:
            pass
        if self._unsaved and self._saving.endswith(self._unsaved):
            size = len(self._saving) - len(self._unsaved)
            state = bytes(self._saving[:size])
            if self._overtaken:  # else the options of the one and the variables of the other would be mixed
                state = state.rpartition(self._overtaken)[2]
            self.state = state if len(state) <= STATE_LIMIT else b""
            self.on_state(self.state)
            self._saving.clear()
            self._unsaved = self._overtaken = b""
        elif len(self._saving) > 2 * STATE_LIMIT:
            del self._saving[:STATE_LIMIT]
        if self._unsaved and not self._state_watched:
            self._loop.add_reader(self._state, self._collect_state)
            self._state_watched = True
        elif not self._unsaved and self._state_watched:
            self._loop.remove_reader(self._state)
            self._state_watched = False

    def send(self, number: int) -> None:
        """A signal to bash itself."""
        if self._process:
            self._process.send(number)

    async def ended(self) -> None:
        """Waits for its death."""
        if self._process:
            await asyncio.shield(self._process.ended)

    def close(self) -> None:
        """Lets go of everything on the host. A bash that still runs reads end of file and exits."""
        for timer in (self._timer, self._state_timer, self._quiet):
            if timer:
                timer.cancel()
        self._loop.remove_reader(self._control)
        if self._state_watched:
            self._loop.remove_reader(self._state)
        self._out.close()
        self._err.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._command.close()
        shutil.rmtree(self._place.host, ignore_errors=True)

    def _make_file(self, name: str, content: bytes) -> None:
        fd = os.open(self._place.host / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o400)
        try:
            os.fchown(fd, self._uid, -1)
            _write(fd, content)
        finally:
            os.close(fd)

    def _keep_open(self, fd: int) -> int:
        self._fds.append(fd)
        return fd


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
    """For bytes that nobody should see, as the prelude's output."""


def _fifo(path: Path, uid: int, mode: int) -> None:
    os.mkfifo(path, mode)
    path.chmod(mode)  # whatever this process's umask is
    os.chown(path, uid, -1)


def _write(fd: int, data: bytes, before: int = 0) -> None:
    """Makes `data` the file's content; it had `before` bytes."""
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], written)
    if len(data) < before:
        os.ftruncate(fd, len(data))


def _waiting(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
