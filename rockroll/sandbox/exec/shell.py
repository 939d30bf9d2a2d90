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

import asyncio
import importlib.resources
import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from typing import NamedTuple

from rockroll.errors import SessionError
from rockroll.sandbox.container.cgroup import Scope
from rockroll.sandbox.container.oci_exec import NotStarted, OciExec
from rockroll.sandbox.exec.feed import Feed
from rockroll.sandbox.exec.place import Place, fifo, write
from rockroll.sandbox.exec.state import SAVE, Told, replay
from rockroll.sandbox.exec.stateless import Surroundings
from rockroll.sandbox.exec.stream import Sink, Stream
from rockroll.sandbox.linux.kept import KeptFile
from rockroll.sandbox.linux.process import Process

OPEN_TIMEOUT_S = 20.0
REGISTER_AFTER_S = 0.001
"""A stream is watched only once a command is older than this: most are not, and watching costs four system calls."""
REPORTS = 512
"""Bytes: many times a report. Who fills the control pipe with more is heard again after FLOOD_S, so that a box that
floods it takes neither the node's processor nor its neighbours' time."""
FLOOD_S = 0.02

_PRELUDE = importlib.resources.files("rockroll.sandbox.exec").joinpath("prelude.sh").read_bytes()
_REPORT = r"""\builtin printf '%s %d\n' "$1" "$2" >|PLACE/ctl
"""
_RETURN = r"""\builtin return "$2"
"""


class Verdict(NamedTuple):
    """How a command ended: its exit code, or, where `died`, the shell's own (negative: a signal; None: unknown)."""

    died: bool
    code: int | None


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
        fifo(place.host / "ctl", uid, 0o600)
        # Read-write: no end of file while the shell only opens it now and then.
        self._control = self._keep_open(os.open(place.host / "ctl", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        self._typing = -1
        self._out = Stream(place, "o", uid, log)
        self._err = Stream(place, "e", uid, log)
        self._id = b""
        self._partial = b""
        self._written = 0
        self._saves = True
        self._timer: asyncio.TimerHandle | None = None
        self._quiet: asyncio.TimerHandle | None = None
        for name, script in (("r", _REPORT + SAVE + _RETURN), ("q", _REPORT + _RETURN)):
            self._make_file(name, script.replace("PLACE", place.inside).encode())
        self._surroundings: tuple[bytes, Surroundings] = b"", Surroundings(b"")
        self.told = Told(place, uid)
        """Its `on_state` is given each new state; b"" when the shell ends because it was told to."""
        self.verdict: asyncio.Future[Verdict] = self._loop.create_future()
        self._loop.add_reader(self._control, self._on_control)

    @property
    def pid(self) -> int:
        """On the host; 0 before it started."""
        return self._process.pid if self._process else 0

    @property
    def dead(self) -> bool:
        return self._process is None or self._process.ended.done()

    @property
    def state(self) -> bytes:
        """Variables, functions, options and so on after the last command whose state has arrived."""
        return self.told.state

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
        if self.told.due:
            self.told.collect()
        write(self._command.fd(), command, self._written)
        self._written = len(command)
        self._saves = bool(self.told.due) or not self._unchanged_by(command)
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
        except BlockingIOError:  # somebody in the box has filled its input: bash would take that for commands
            self.send(signal.SIGKILL)
            return self.verdict
        self._timer = self._loop.call_later(REGISTER_AFTER_S, self._watch)
        return self.verdict

    def _unchanged_by(self, command: bytes) -> bool:
        state = self.told.state
        if self._surroundings[0] is not state:
            self._surroundings = state, Surroundings(state)
        return self._surroundings[1].unchanged_by(command)

    def _input(self, feed: Feed) -> str:
        """A FIFO of this command's own, as the shell opens it."""
        name = f"i{self._id.decode()}"
        fifo(self._place.host / name, self._uid, 0o600)
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
            if number == self._id and code.isdigit() and len(code) <= 3 and not self.verdict.done():
                self._finish(Verdict(False, int(code)))

    def _finish(self, verdict: Verdict) -> None:
        if self._saves:
            self.told.expect(self._id)
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
        code = status.result()
        try:
            self.told.died(told_to=code is not None and code >= 0)
            if not self.verdict.done():
                self._out.drain()
                self._err.drain()
        finally:  # whoever waits for it hears of it, whatever became of its last output
            if not self.verdict.done():
                self.verdict.set_result(self._death())

    def _death(self) -> Verdict:
        return Verdict(True, self._process.ended.result() if self._process else None)

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
        for timer in (self._timer, self._quiet):
            if timer:
                timer.cancel()
        self._loop.remove_reader(self._control)
        self.told.close()
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
            write(fd, content)
        finally:
            os.close(fd)

    def _keep_open(self, fd: int) -> int:
        self._fds.append(fd)
        return fd


def _nowhere(_: bytes) -> None:
    """For bytes that nobody should see, as the prelude's output."""
