"""Limits met without death are told by the call during which they were met."""

from __future__ import annotations

import time

import pytest

from rockroll.sandbox import wire
from rockroll.sandbox.container.meter import Meter
from tests.sandbox.conftest import Lab, needs_cgroups

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_cgroups]
FORKS = """
import os, signal
refused, children = 0, []
for _ in range(80):
    try:
        pid = os.fork()
    except OSError:
        refused += 1
        continue
    if pid == 0:
        signal.pause()
    children.append(pid)
for pid in children:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
print(refused)
"""
EAT = "python3 -c 'b = bytearray(300 << 20)'"


async def test_a_process_killed_for_memory_is_told_though_the_command_did_well(shared: Lab) -> None:
    seen = await shared.run(f"{EAT}; echo went on")
    assert (seen.stdout, seen.exit_code, seen.outcome) == (b"went on\n", 0, "ok")
    assert seen.events == {"oom_kills": 1}
    assert (await shared.run("true")).events == {}, "it is the call's, not the box's"


async def test_forks_refused_are_counted_exactly(shared: Lab) -> None:
    await shared.call("file.write", wire.WriteFile(id=shared.id, path="/srv/forks.py", data=FORKS.encode()))
    for seen in (await shared.run("python3 /srv/forks.py"), await shared.execute("python3", "/srv/forks.py")):
        assert (seen.exit_code, seen.outcome) == (0, "ok")
        assert int(seen.stdout) > 0
        assert seen.events == {"pids_refused": int(seen.stdout)}


async def test_a_program_that_was_killed_for_memory_says_so_and_is_counted(shared: Lab) -> None:
    seen = await shared.execute("sh", "-c", f"{EAT} & wait; {EAT}; exit 3")
    assert (seen.exit_code, seen.outcome, seen.events) == (3, "ok", {"oom_kills": 2})


async def test_what_happens_after_a_timeout_is_not_the_next_calls(shared: Lab) -> None:
    seen = await shared.run(f"{EAT}; sleep 50", timeout=3)
    assert (seen.outcome, seen.events) == ("timeout", {"oom_kills": 1})
    assert (await shared.run("true")).events == {}


async def test_counting_costs_microseconds(shared: Lab) -> None:
    await shared.run("true")
    meter = shared.box.sessions.open["default"].scope.meter
    best = min(_timed(meter) for _ in range(200))
    assert best < 100e-6, f"{best * 1e6:.0f} us for begin and events"


def _timed(meter: Meter) -> float:
    begun = time.perf_counter()
    meter.begin()
    meter.events()
    return time.perf_counter() - begun
