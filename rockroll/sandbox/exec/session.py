"""A persistent Bash session: turns, timeouts and new shells around shell.py's one bash.

In: commands from any number of callers. Out: one Observation each, in the order of arrival. Leaves the box's own life
to its `Home` (hull.py), which says whether the box is dying.

              first command                    report
    (none) ───────────────► idle ──► busy ─────────────────────────────────────► idle
                             ▲        │ shell ended by itself (exit 3)      ──► none: next command opens a fresh one
                             │        │ shell killed (OOM, kill -9 $$)      ──► none: next one has the saved state
                             │        │ timeout or caller gone: SIGKILL to all it started, SIGINT to the shell
                             │        │        └ reports within 100 ms      ──► idle
                             └────────┴──────── else SIGKILL; a new shell with the saved state
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

from rockroll.errors import SandboxError, SandboxLost, SessionError, UsageError
from rockroll.sandbox.container import cgroup
from rockroll.sandbox.container.cgroup import Scope
from rockroll.sandbox.exec.environment import Changes, as_bash
from rockroll.sandbox.exec.feed import Tether
from rockroll.sandbox.exec.late_interrupt import LateInterrupt, send_late
from rockroll.sandbox.exec.shell import Shell, Sink, Verdict
from rockroll.sandbox.wire import Observation, Outcome, SessionInfo

RESIST_S = 0.1
"""A shell that has not come back this long after SIGINT never will (`trap '' INT`, `kill -STOP $$`)."""
GRACE_S = 0.002
"""Between SIGINT to what a command started and SIGKILL: if its foreground child dies of SIGINT, bash leaves the whole
script, as at Ctrl-C; of SIGKILL it would go on with the script's next line until the next SIGINT."""
STEP_S = 0.005
EXPORT_S = 5.0


class Capture:
    """One stream of one command: the first `limit` bytes kept, the rest counted; all of it goes to the log.

    tap: is handed what is kept, as it comes.
    """

    def __init__(self, limit: int, log: Sink, tap: Sink | None = None) -> None:
        self._left, self._log, self._tap = limit, log, tap
        self._parts: list[bytes] = []
        self.dropped = 0

    def __call__(self, data: bytes) -> None:
        self._log(data)
        if len(data) > self._left:
            self.dropped += len(data) - self._left
            data = data[: self._left]
        if data:
            self._left -= len(data)
            self._parts.append(data)
            if self._tap:
                self._tap(data)

    @property
    def data(self) -> bytes:
        return b"".join(self._parts)


def captures(limit: int, log: Sink, tether: Tether | None) -> tuple[Capture, Capture]:
    """For stdout and stderr."""
    if tether is None:
        return Capture(limit, log), Capture(limit, log)
    return Capture(limit, log, partial(tether.tap, 1)), Capture(limit, log, partial(tether.tap, 2))


class Home(Protocol):
    """What a session asks of its box."""

    def doomed(self) -> Outcome | None:
        """Why everything in the box is dead or dying ("lost", "killed"), or None while init lives."""
        ...

    def oom_killed(self) -> bool:
        """Whether the kernel has killed for memory since this was last asked."""
        ...

    async def new_shell(self, scope: Scope, env: Mapping[str, str], cwd: str | None, state: bytes, keep: Sink) -> Shell:
        """A started shell. keep: is handed its state after each command. Raises SessionError, SandboxLost."""
        ...

    def log(self, data: bytes) -> None:
        """Appends to the box's log."""
        ...

    def held_s(self) -> float:
        """Seconds for which the box has stood still, while its files were copied."""
        ...

    async def thawed(self) -> None:
        """Waits while it stands still."""
        ...


class Session:
    """See the module's drawing. `close` before letting go."""

    def __init__(
        self,
        home: Home,
        name: str,
        scope: Scope,
        *,
        env: Mapping[str, str],
        cwd: str | None,
        keep: Sink,
        past: bytes | None = None,
    ) -> None:
        """keep: is handed the shell's state after each command. past: the state of the session of this name that the
        box had before it died, or its node did."""
        self.name = name
        self.scope = scope
        self.created = time.time()
        self._home, self._env, self._cwd, self._keep = home, dict(env), cwd, keep
        self._shell: Shell | None = None
        self._turn = asyncio.Lock()
        self._state = past or b""
        self._unexported: dict[str, str | None] = {}
        self._had_shell = past is not None
        self._closed = False
        self._mending: asyncio.Task[None] | None = None
        self._unlooked: asyncio.Handle | None = None

    def info(self) -> SessionInfo:
        pid = self._shell.pid if self._shell and not self._shell.dead else 0
        return SessionInfo(session=self.name, pid=pid, busy=self._turn.locked(), created=self.created)

    async def open(self) -> None:
        """Opens the shell now instead of at the first command."""
        async with self._turn:
            await self._ready()

    async def run(
        self, command: bytes, *, timeout: float | None, max_output: int, label: str = "", tether: Tether | None = None
    ) -> Observation:
        """Runs one command when its turn comes. Cancelling it kills what the command has started.

        timeout: seconds from the start of the command. Raises SessionError where no shell can be opened or the session
        was closed meanwhile, SandboxLost where the box is dead.
        """
        if b"\0" in command:
            raise UsageError("a command cannot hold a NUL byte: bash would drop it; write the bytes to a file instead")
        if timeout is not None and timeout <= 0:
            raise UsageError(f"timeout: seconds above zero, or none at all; got {timeout:g}")
        async with self._turn:
            restarted = await self._ready()
            restarted |= await self._export()
            return await self._run(command, timeout, max_output, label, restarted, tether)

    def change_env(self, changes: Changes) -> None:
        """Variables that the shell exports or unsets before its next command; its later shells start with them."""
        self._env = {key: value for key, value in self._env.items() if key not in changes}
        self._unexported.update(changes)

    async def _export(self) -> bool:
        """Whether the shell had to be replaced for it: then it is a new one, which does not have the changes yet."""
        if not self._unexported or self._shell is None:
            return False
        changes, code = self._unexported, as_bash(self._unexported)
        self._unexported = {}
        verdict = self._shell.begin(code, _unseen, _unseen)  # with set -x it would show values, and they may be secret
        try:
            held_up = not await settled(verdict, EXPORT_S)  # by a DEBUG trap of the session's own
            if held_up and await self._interrupt_shielded(self._shell, verdict):
                self._unexported = {**changes, **self._unexported}
                if self._shell is None:
                    await self._ready()
                return True
        except asyncio.CancelledError:
            if not verdict.done():
                self._mend(self._interrupt(self._shell, verdict))
            raise
        return False

    def pending(self) -> Changes:
        """Variables that no shell of it has been told of yet."""
        return dict(self._unexported)

    def saved(self) -> tuple[bytes, dict[str, str], str | None, bool]:
        """For a shell that is to begin as this one is: the state after its last command, the variables and folder it
        was opened with, and whether a command is running, whose changes are not in the state."""
        state = self._shell.state if self._shell else self._state
        return state, dict(self._env), self._cwd, self._turn.locked()

    async def _ready(self) -> bool:
        """A living shell; whether it is a new one where there had been another."""
        if self._unlooked:  # the next command came in the same turn of the loop
            self._unlooked.cancel()
            if self._shell:
                self._let_go_of_survivors(self._shell.pid)
        if self._mending:
            await asyncio.shield(self._mending)
        if self._closed:
            raise self._was_closed()
        if self._shell and not self._shell.dead:
            return False
        if self._home.doomed():
            raise SandboxLost("the sandbox is not running; start it again or make a new one")
        had, self._had_shell = self._had_shell, True
        if self._shell:  # it died between two commands (TMOUT, a signal)
            self._state = self._shell.state
            self._drop_shell()
        try:
            self._shell = await self._home.new_shell(self.scope, self._env, self._cwd, self._state, self._keep)
        except SandboxError:
            if self._closed:
                raise self._was_closed() from None
            if self._home.doomed():
                raise SandboxLost("the sandbox ended while a shell was being opened in it") from None
            raise
        if self._closed:  # meanwhile: what was killed then was not yet this shell
            self._shell.send(signal.SIGKILL)
            await self._shell.ended()
            self._drop_shell()
            raise self._was_closed()
        return had

    def _was_closed(self) -> SessionError:
        return SessionError(f"session {self.name!r} was closed; create it again")

    async def _run(
        self, command: bytes, timeout: float | None, limit: int, label: str, new: bool, tether: Tether | None
    ) -> Observation:
        shell = self._shell
        assert shell is not None
        log = Headed(self._home.log, self.name, label, command)
        out, err = captures(limit, log, tether)
        begun, held = time.perf_counter(), self._home.held_s()
        self.scope.begin()
        verdict = shell.begin(command, out, err, tether.feed if tether else None)
        self.scope.meter.begin()  # while bash reads what was typed: that takes it longer
        if tether:
            tether.send = partial(self._send, shell)
        try:
            ended = await settled(verdict, timeout)
        except asyncio.CancelledError:
            self._mend(self._interrupt(shell, verdict))
            log.end("killed: its caller is gone")
            raise
        if not ended and not await self._after_a_hold(verdict, held):
            restarted = await self._interrupt_shielded(shell, verdict)
            outcome, code = self._home.doomed() or "timeout", None
        elif verdict.result().died:
            outcome, code = self._after_death(shell, verdict.result())
            restarted = False
            self._let_go_of_survivors(0)
        else:
            outcome, code, restarted = "ok", verdict.result().code, False
            # 137: the command itself, or the last one of it, died of SIGKILL; whose, only the kernel's counter tells
            if code == 137 and self._killed_for_memory():
                outcome = "oom"
            # After the answer: the caller need not wait for it, and the next command does.
            self._unlooked = asyncio.get_running_loop().call_soon(self._let_go_of_survivors, shell.pid)
        log.end(None if outcome == "ok" else outcome)
        return Observation(
            stdout=out.data,
            stderr=err.data,
            exit_code=code,
            outcome=outcome,
            session_restarted=new or restarted,
            truncated_bytes=out.dropped + err.dropped,
            duration_s=time.perf_counter() - begun,
            events=self.scope.meter.events(),
        )

    async def _after_a_hold(self, verdict: asyncio.Future[Verdict], before: float) -> bool:
        """The timeout is over. While its files are copied the box stands still: that time is given back; whether the
        command ended in it."""
        while (held := self._home.held_s()) > before:
            await self._home.thawed()
            before, given = held, held - before
            if await settled(verdict, given):
                return True
        return False

    def _send(self, shell: Shell, number: int) -> None:
        """A signal to what the command under way has started; Ctrl-C's is for bash as well, as on a terminal."""
        if number != signal.SIGINT:
            verdict = shell.verdict
            send_late(lambda: cgroup.send(self.scope.started, (shell.pid,), number), verdict.done)
            return
        late = LateInterrupt(shell.pid, self.scope.started())
        shell.send(number)
        cgroup.send(self.scope.started, (shell.pid,), number)
        late.follow()

    def _after_death(self, shell: Shell, verdict: Verdict) -> tuple[Outcome, int | None]:
        if outcome := self._home.doomed():
            return outcome, None
        code = verdict.code
        self._drop_shell()
        if code is None or code >= 0:
            self._state = b""  # it ended because it was told to: the next one starts afresh
            return "closed", code
        self._state = shell.state
        oom = -code == signal.SIGKILL and self._killed_for_memory()
        return "oom" if oom else "killed", 128 - code

    def _killed_for_memory(self) -> bool:
        """Whether the kernel has killed for memory since the command began. A kill of an earlier one, which got over it
        and so was never asked after, is not this one's: `kill -9 $PPID` in a box that had such a kill was told as oom.
        """
        self._home.oom_killed()  # noted: the box's own death does not stand on it any more
        return "oom_kills" in self.scope.meter.events()

    def _let_go_of_survivors(self, shell: int) -> None:
        """Background jobs leave the scope, so that a later command's timeout does not kill them."""
        self._unlooked = None
        left = [pid for pid in self.scope.survivors() if pid != shell]
        if left and not self._closed:
            # Moving a process between cgroups blocks for some ms; the next command waits for it, this one does not.
            self._mend(asyncio.to_thread(self.scope.release, left))

    def _mend(self, work: Coroutine[Any, Any, Any]) -> None:
        """Owned by the session: the next command, or close, awaits it."""

        async def mend() -> None:
            await work

        self._mending = asyncio.get_running_loop().create_task(mend())
        self._mending.add_done_callback(self._mended)

    def _mended(self, task: asyncio.Task[None]) -> None:
        if self._mending is task:
            self._mending = None
        if not task.cancelled() and task.exception():
            self._home.log(f"[{self.name}] {task.exception()}\n".encode())

    async def _interrupt_shielded(self, shell: Shell, verdict: asyncio.Future[Verdict]) -> bool:
        """The kill runs to its end even if the caller goes away in the middle of it."""
        done = asyncio.get_running_loop().create_future()

        async def work() -> None:
            done.set_result(await self._interrupt(shell, verdict))

        self._mend(work())
        assert self._mending is not None
        await asyncio.shield(self._mending)
        return done.result()

    async def _interrupt(self, shell: Shell, verdict: asyncio.Future[Verdict]) -> bool:
        """Ends the command and everything it started; whether the shell had to be replaced."""
        await self._home.thawed()  # one that stands still cannot answer
        end = asyncio.get_running_loop().time() + RESIST_S
        while True:
            # Both each time: a bash that waits for a child heeds its SIGINT only if the child dies of one as well.
            shell.send(signal.SIGINT)
            cgroup.send(self.scope.started, (shell.pid,), signal.SIGINT)
            await settled(verdict, GRACE_S)
            cgroup.send(self.scope.started, (shell.pid,), signal.SIGKILL)
            if await settled(verdict, STEP_S) or asyncio.get_running_loop().time() > end:
                break
        if not verdict.done():
            shell.send(signal.SIGKILL)  # no SIGCONT before: a stopped shell would go on for a moment
            await shell.ended()
        await cgroup.kill(self.scope.started, (shell.pid,))
        if not shell.dead:
            return False
        self._state = shell.state
        self._drop_shell()
        if not self._closed and not self._home.doomed():
            try:
                self._shell = await self._home.new_shell(self.scope, self._env, self._cwd, self._state, self._keep)
            except SandboxError as error:  # the next command tries again, and tells
                self._home.log(f"[{self.name}] {error}\n".encode())
        return True

    def _drop_shell(self) -> None:
        if self._shell:
            self._shell.close()
            self._shell = None

    async def close(self) -> None:
        """Kills the shell and everything in its scope. Calls under way get "killed" (or "lost", with the box)."""
        self._closed = True
        if self._unlooked:
            self._unlooked.cancel()
        if self._mending:
            await asyncio.gather(self._mending, return_exceptions=True)
        if self._shell:
            self._shell.send(signal.SIGKILL)
            await self._shell.ended()
        if not self._home.doomed():
            await cgroup.kill(self.scope.everything)
        async with self._turn:  # whoever was waiting on the shell has its answer
            self._drop_shell()


class Headed:
    """The log of one command: a line that says what was run, before its first output or at its end."""

    def __init__(self, log: Sink, session: str, label: str, command: bytes) -> None:
        first, _, more = command.strip().partition(b"\n")
        text = first[:200] + (b" ..." if more or len(first) > 200 else b"")
        self._log, self._session = log, session
        self._head = f"[{session}{' ' + label if label else ''}] $ ".encode() + text + b"\n"

    def __call__(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        self._log(data)

    def end(self, note: str | None) -> None:
        if note:
            self(f"[{self._session}] {note}\n".encode())
        elif self._head:
            self(b"")


def _unseen(_: bytes) -> None:
    """Output that is nobody's."""


async def settled(future: asyncio.Future[Any], timeout: float | None) -> bool:
    """Whether the future is done within timeout seconds. Neither the timeout nor a cancellation touches it."""
    if future.done():
        return True
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    timer = loop.call_later(timeout, wake) if timeout is not None else None
    try:
        await waiter
    finally:
        if timer:
            timer.cancel()
        future.remove_done_callback(wake)
    return future.done()
