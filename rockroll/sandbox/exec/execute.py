"""One program in a sandbox, without a shell: its exact output, and its exit code from a wait outside the box.

In: argv, environment, folder, stdin bytes. Out: one Observation. Leaves the starting to oci_exec.py and the finding of
what it started to cgroup.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import partial
from typing import Protocol

from rockroll.errors import UsageError
from rockroll.sandbox.container import cgroup
from rockroll.sandbox.container.cgroup import Scope
from rockroll.sandbox.container.oci_exec import NotStarted, OciExec
from rockroll.sandbox.exec.feed import Feed, Tether
from rockroll.sandbox.exec.session import Capture, Headed, captures, settled
from rockroll.sandbox.exec.stream import Sink, pump, take
from rockroll.sandbox.linux.process import Process
from rockroll.sandbox.wire import Execute, Observation, Outcome


class Home(Protocol):
    """What an execute asks of its box."""

    @property
    def execer(self) -> OciExec: ...
    @property
    def uid(self) -> int:
        """The box's user, as this host numbers it."""
        ...

    def doomed(self) -> Outcome | None: ...
    def oom_killed(self) -> bool: ...
    def log(self, data: bytes) -> None: ...


class _Pipe:
    """The reading end of one stream. A background process may hold it after the program's end: then it goes on, into
    the log, until that one ends too."""

    def __init__(self, uid: int, sink: Sink, log: Sink) -> None:
        self._loop = asyncio.get_running_loop()
        self._sink, self._log = sink, log
        self._fd, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        os.fchown(self.writing, uid, -1)  # else /dev/stdout cannot be opened in the box
        self._loop.add_reader(self._fd, self._on_data)

    def _on_data(self) -> None:
        if not pump(self._fd, self._sink):
            self.close()

    def started(self) -> None:
        os.close(self.writing)
        self.writing = -1

    def finish(self) -> None:
        """Takes what is in the pipe now; what comes later is the log's."""
        if self._fd >= 0:
            take(self._fd, self._sink)
        self._sink = self._log

    def close(self) -> None:
        if self.writing >= 0:
            self.started()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


async def execute(home: Home, scope: Scope, body: Execute, tether: Tether | None = None) -> Observation:
    """Runs the program to its end. Cancelling kills it and all it started. Background processes live on.

    A program that is missing gives 127 and one that cannot run 126, as in a shell, with a sentence on stderr.
    """
    if not body.argv:
        raise UsageError("execute needs a program: argv is empty")
    if any("\0" in word for word in body.argv):
        raise UsageError("argv cannot hold a NUL byte: no program would get it")
    if body.timeout is not None and body.timeout <= 0:
        raise UsageError(f"timeout: seconds above zero, or none at all; got {body.timeout:g}")
    log = Headed(home.log, "execute", "", os.fsencode(" ".join(body.argv)))
    caught = captures(body.max_output, log, tether)
    pipes = [_Pipe(home.uid, capture, home.log) for capture in caught]
    begun = time.perf_counter()
    scope.meter.begin()
    process: Process | None = None
    over = False
    try:
        if tether:
            tether.send = partial(_send, scope)  # before the start: its first output may be seen before that returns
        stdin = _piped(tether.feed, home.uid) if tether and tether.feed else _stdin(body.stdin, home)
        try:
            async with home.execer.starts:
                process = await home.execer.spawn(
                    body.argv,
                    scope,
                    stdin=stdin,
                    stdout=pipes[0].writing,
                    stderr=pipes[1].writing,
                    env=body.env,
                    cwd=body.cwd,
                )
        except NotStarted as error:
            if outcome := home.doomed():  # its file system goes before its processes
                over = True
                return _observation(caught, None, outcome, time.perf_counter() - begun, scope)
            for pipe in pipes:  # not what the runtime printed
                pipe.close()
            caught[1](error.message.encode() + b"\n")
            over = True
            return _observation(caught, error.fields["code"], "ok", time.perf_counter() - begun, scope)
        finally:
            os.close(stdin)
        for pipe in pipes:
            pipe.started()
        in_time = await settled(process.ended, body.timeout)
        if in_time:
            code, outcome = _verdict(process.ended.result(), home, scope)
            await asyncio.to_thread(scope.release, scope.pids())
        else:
            await _end(process, scope)
            code, outcome = None, home.doomed() or "timeout"
        for pipe in pipes:
            pipe.finish()
        log.end(None if outcome == "ok" else outcome)
        over = True
        return _observation(caught, code, outcome, time.perf_counter() - begun, scope)
    finally:
        if not over:
            await _end(process, scope)
            log.end("killed: its caller is gone")
        if not over or process is None:
            for pipe in pipes:
                pipe.close()


async def _end(process: Process | None, scope: Scope) -> None:
    if process:
        process.send(signal.SIGKILL)
        await asyncio.shield(process.ended)
    await cgroup.kill(scope.pids)


def _send(scope: Scope, number: int) -> None:
    cgroup.send(scope.pids, (), number)


def _verdict(status: int | None, home: Home, scope: Scope) -> tuple[int | None, Outcome]:
    if outcome := home.doomed() if status is None or status < 0 else None:
        return None, outcome
    if status is None:
        return None, "killed"
    if status == -signal.SIGKILL:
        home.oom_killed()  # noted: the box's own death does not stand on it any more
        if "oom_kills" in scope.meter.events():  # since the program began: not one that an earlier one got over
            return 128 + signal.SIGKILL, "oom"
    return (status if status >= 0 else 128 - status), "ok"


def _observation(
    caught: tuple[Capture, Capture], code: int | None, outcome: Outcome, seconds: float, scope: Scope
) -> Observation:
    out, err = caught
    return Observation(
        stdout=out.data,
        stderr=err.data,
        exit_code=code,
        outcome=outcome,
        truncated_bytes=out.dropped + err.dropped,
        duration_s=seconds,
        events=scope.meter.events(),
    )


def _piped(feed: Feed, uid: int) -> int:
    """The reading end of a pipe that the feed writes to."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.fchown(reading, uid, -1)
    feed.through(writing)
    return reading


def _stdin(data: bytes, home: Home) -> int:
    """A file in memory: of any size, and no task has to feed it."""
    if not data:
        return home.execer.null(os.O_RDONLY)
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    os.fchown(fd, home.uid, -1)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
