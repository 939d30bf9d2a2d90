"""Processes started in a box without its OCI runtime are what the runtime would have started, and show no more."""

from __future__ import annotations

import asyncio
import difflib
import os
import signal
import socket
import sys

import pytest

from rockroll.errors import SandboxLost
from rockroll.sandbox import wire
from rockroll.sandbox.container import enter
from rockroll.sandbox.container.spawner import FILES_A_START, STARTS_AT_ONCE
from rockroll.sandbox.linux.process import Process
from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import IS_ROOT, Lab

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not IS_ROOT, reason="an ordinary user's processes are started by the runtime"),
]

DESCRIBE = """
grep -vE '^(Name|.*[Pp]id|NS|Tgid|Vm|Rss|Hugetlb|SigQ|SigIgn|.*ctxt|FDSize|State)' /proc/self/status
cd /proc/self; cat limits oom_score_adj cgroup uid_map mounts loginuid; cd - >/dev/null
for n in /proc/self/ns/*; do echo "$n $(readlink $n)"; done
cat /proc/self/environ | tr '\\0' '\\n' | sort
umask; pwd; id; ls /proc/$$/fd; cat /proc/$$/stat | cut -d' ' -f18,19,40,41
"""
FORBIDDEN = """
unshare -U true; unshare -n true; mount -t tmpfs x /mnt; mknod /srv/null c 1 3; chroot / true; hostname x; dmesg
python3 -c '
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for number in (101, 155, 165, 175, 246, 248, 250, 272, 298, 308, 321, 323, 425, 435, 440):
    print(number, libc.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno())
'
"""


async def by_runtime(lab: Lab, script: str) -> bytes:
    inside, lab.box.hull.execer._inside = lab.box.hull.execer._inside, None
    try:
        return await described(lab, script)
    finally:
        lab.box.hull.execer._inside = inside


async def described(lab: Lab, script: str) -> bytes:
    done = await lab.execute("sh", "-c", script)
    assert done.outcome == "ok"
    return done.stdout + done.stderr


@pytest.mark.parametrize("config", [{}, {"user": "65534:65534"}, {"mounts": ["/tmp:/mnt"]}], ids=str)
async def test_a_process_is_as_the_runtime_would_have_made_it(host: SandboxHost, config: dict[str, object]) -> None:
    lab = await Lab(host, **config).up()
    assert lab.box.hull.execer._inside is not None, "this host does not allow what is tested here"
    for script in (DESCRIBE, FORBIDDEN):
        directly, runtime = await described(lab, script), await by_runtime(lab, script)
        lines = directly.decode().splitlines(), runtime.decode().splitlines()
        assert list(difflib.unified_diff(*lines, "directly", "runtime", lineterm="")) == []
    assert await described(lab, "grep SigIgn /proc/self/status") == b"SigIgn:\t0000000000000000\n"


async def test_the_runtime_way_keeps_the_promises_too(lab: Lab) -> None:
    lab.box.hull.execer._inside = None
    assert (await lab.execute("sh", "-c", "exit 7")).exit_code == 7
    assert (await lab.execute("nosuch")).exit_code == 127
    assert (await lab.execute("true", cwd="/nowhere")).exit_code == 126
    assert (await lab.execute("sh", "-c", "setsid -f sleep 77; sleep 77", timeout=0.5)).outcome == "timeout"
    assert not lab.named("77")
    assert await lab.out("x=5; echo $x") == "5"


LOOK = """
import os, time
own, seen, end = os.getpid(), set(), time.time() + 1.5
while time.time() < end:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for what in ("exe", "cwd", "root", *(f"fd/{n}" for n in range(12))):
            try:
                seen.add(os.readlink(f"/proc/{pid}/{what}"))
            except OSError:
                pass
        try:
            seen.add(open(f"/proc/{pid}/environ").read()[:300])
        except OSError:
            pass
print(chr(10).join(sorted(seen)))
"""


async def test_nothing_of_the_host_can_be_seen_through_a_process_that_is_being_started(lab: Lab) -> None:
    looking = asyncio.create_task(lab.execute("python3", "-c", LOOK))
    await asyncio.sleep(0.2)
    while not looking.done():
        await asyncio.gather(*(lab.execute("true", cwd="/srv") for _ in range(4)))
    seen = (await looking).stdout.decode()
    assert "/usr/bin/" in seen
    for trace in (
        "enter.py",
        "pyenv",
        "/work",
        ".venv",
        "python3.11/site",
        "socket:",
        "cgroup.procs",
    ):
        assert trace not in seen, seen


@pytest.mark.parametrize("room", [enter.MAX_ORDER, 100_000], ids=["too-large-for-an-order", "too-large-for-the-socket"])
async def test_what_is_too_large_for_an_order_is_started_by_the_runtime(host: SandboxHost, lab: Lab, room: int) -> None:
    if room < enter.MAX_ORDER:
        orders = host._spawner._running()
        orders.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room // 2)
    helper = host._spawner._process
    done = await lab.execute("sh", "-c", "echo $#", "sh", *["x" * 100_000] * (room // 100_000 + 1))
    assert done.stdout == f"{room // 100_000 + 1}\n".encode(), done
    assert host._spawner._process is helper and helper is not None and not helper.ended.done()
    host._spawner.close()  # the next has its own socket


async def test_the_helper_is_started_again_when_it_dies(host: SandboxHost, lab: Lab) -> None:
    await lab.execute("true")  # it is there from the first order on
    helper = host._spawner._process
    assert helper is not None
    os.kill(helper.pid, signal.SIGKILL)
    for _ in range(3):
        assert (await lab.execute("echo", "on")).stdout == b"on\n"
    assert host._spawner._process is not helper


async def test_every_one_of_more_orders_than_its_socket_holds_is_answered(host: SandboxHost, lab: Lab) -> None:
    await lab.execute("true")
    helper = host._spawner._process
    assert helper is not None
    helper.send(signal.SIGSTOP)
    padding = {"PADDING": "x" * 100_000}  # a dozen fill the socket, and the rest must wait for room
    starts = [asyncio.create_task(lab.execute("true", env=padding)) for _ in range(40)]
    await asyncio.sleep(0.5)
    helper.send(signal.SIGCONT)
    async with asyncio.timeout(60):
        assert {done.exit_code for done in await asyncio.gather(*starts)} == {0}


async def test_starts_that_wait_their_turn_hold_no_descriptors(host: SandboxHost, lab: Lab) -> None:
    """A thousand shells asked for at once would hold more than a process may have."""
    await lab.execute("true")
    helper = host._spawner._process
    assert helper is not None
    helper.send(signal.SIGSTOP)
    starts = [asyncio.create_task(lab.execute("true")) for _ in range(4 * STARTS_AT_ONCE)]
    await asyncio.sleep(0.5)
    groups = sum(os.path.realpath(f"/proc/self/fd/{fd}").endswith("cgroup.procs") for fd in range(4096))
    helper.send(signal.SIGCONT)
    assert {done.exit_code for done in await asyncio.gather(*starts)} == {0}
    assert 0 < groups <= STARTS_AT_ONCE * FILES_A_START


async def test_shells_that_wait_their_turn_hold_no_pipes(host: SandboxHost) -> None:
    """Two thousand that do are more than a process may have, whatever else each holds."""
    lab = await Lab(host, pids=8 * STARTS_AT_ONCE, memory="512m").up()
    await lab.execute("true")
    helper = host._spawner._process
    assert helper is not None
    helper.send(signal.SIGSTOP)
    opening = [asyncio.create_task(lab.new_session(f"s{n}")) for n in range(2 * STARTS_AT_ONCE)]
    await asyncio.sleep(0.5)
    nulls = sum(os.path.realpath(f"/proc/self/fd/{fd}") == "/dev/null" for fd in range(4096))
    helper.send(signal.SIGCONT)
    assert len(set(await asyncio.gather(*opening))) == len(opening)
    assert STARTS_AT_ONCE <= nulls < STARTS_AT_ONCE + 8  # some are the tests' own
    await lab.call("sandbox.delete", wire.Ref(id=lab.id))


async def test_a_box_that_dies_meanwhile_is_lost(lab: Lab) -> None:
    os.kill(lab.box.init, signal.SIGKILL)
    for _ in range(20):
        try:
            done = await lab.execute("true")
        except SandboxLost:
            return
        assert done.outcome in ("ok", "lost")
        await asyncio.sleep(0.02)
    raise AssertionError("a dead box went on taking programs")


ORPHAN = """
import os, sys
if (child := os.fork()) == 0:
    os._exit(3)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
print(child, flush=True)
sys.stdin.read()
"""


async def test_one_that_was_passed_on_in_between_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not this process's child at the first look, its child at the second: then no parent's end will ever tell."""
    child = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})  # noqa: ASYNC221 - a fork
    waitid, looks = os.waitid, [ChildProcessError()]

    def look(*asked: int) -> object:
        if looks:
            raise looks.pop()
        return waitid(*asked)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "waitid", look)
    assert await asyncio.wait_for(Process(child, orphan=True).ended, 10) == 7


async def test_a_program_that_ends_before_the_process_it_was_forked_from_keeps_its_exit_code(host: SandboxHost) -> None:
    """It was told as killed: one in a thousand starts under load, more with long arguments."""
    middle = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ORPHAN, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert middle.stdout and middle.stdin
    quick = Process(int(await middle.stdout.readline()), orphan=True)
    await asyncio.sleep(0.05)
    assert not quick.ended.done()
    middle.stdin.close()
    async with asyncio.timeout(5):
        assert await quick.ended == 3
    await middle.wait()
