"""An interrupt reaches what a shell has forked, though it comes before that has become its program."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from rockroll.sandbox.exec.late_interrupt import LateInterrupt, send_late

SHELL = """
import os, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: None)     # as bash's own handler: taken, and forgotten by exec
child = os.fork()
if child == 0:
    sys.stdin.readline()
    os.execvp("sleep", ["sleep", "30"])
print(child, flush=True)
status = os.waitpid(child, 0)[1]
print(os.waitstatus_to_exitcode(status), flush=True)
"""


def shell() -> tuple[subprocess.Popen[str], int]:
    """A process, and its child that is a copy of it until a line comes."""
    process = subprocess.Popen([sys.executable, "-c", SHELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, int(process.stdout.readline())


def program() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "30"])


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_a_copy_of_the_shell_gets_it_again_when_it_is_its_program() -> None:
    process, child = shell()
    late = LateInterrupt(process.pid, [child])
    os.kill(child, signal.SIGINT)
    late.follow()
    said, _ = await asyncio.to_thread(process.communicate, "go\n", 20)
    assert int(said) == -signal.SIGINT


async def test_what_stays_a_copy_or_was_its_program_already_gets_none() -> None:
    process, child = shell()
    sleeper = program()
    late = LateInterrupt(process.pid, [child, sleeper.pid, process.pid])
    before = open_descriptors()
    late.follow()
    await asyncio.sleep(0.6)  # longer than it looks
    assert sleeper.poll() is None and open_descriptors() == before - 1, "it has let go of the copy"
    os.kill(child, signal.SIGKILL)
    sleeper.kill()
    sleeper.wait()
    process.communicate(timeout=20)


async def test_a_signal_that_meets_no_process_is_for_the_next_one() -> None:
    found = iter([0, 0, 1])
    send_late(lambda: next(found), lambda: False)
    await asyncio.sleep(0.2)
    assert next(found, None) is None, "it stopped when it had met one"
    tries: list[float] = []
    send_late(lambda: bool(tries.append(0)), lambda: len(tries) >= 2)
    await asyncio.sleep(0.6)
    assert len(tries) == 2, "and when the command was over"
