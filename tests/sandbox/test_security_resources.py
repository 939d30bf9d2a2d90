"""A box that takes all that it can get takes its own: its neighbour answers, and so does the host."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from rockroll.errors import RockrollError
from rockroll.sandbox import wire
from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import Lab, needs_cgroups, only_root

pytestmark = pytest.mark.asyncio(loop_scope="module")
HOLD = "print(n, flush=True); import time; time.sleep(60)"
INOTIFY = "import ctypes; l = ctypes.CDLL(None); n = 0\nwhile l.inotify_init1(0) >= 0: n += 1\n"
SIGNALS = """
import ctypes, os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 64))
l = ctypes.CDLL(None); n = 0
while l.sigqueue(os.getpid(), 40, 0) == 0: n += 1
"""
QUEUES = """
import ctypes
l = ctypes.CDLL("librt.so.1"); n = 0
while l.mq_open(b"/q%d" % n, 0o102, 0o600, None) >= 0: n += 1
"""
PIPES = """
import fcntl, os
n = 0
try:
    while n < 2000:
        fcntl.fcntl(os.pipe()[1], 1031, 1 << 20)
        n += 1
except OSError:
    pass
"""
FILES = "import os; n = 0\ntry:\n    while True: os.dup(0); n += 1\nexcept OSError: pass\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def neighbour(host: SandboxHost) -> Lab:
    lab = await Lab(host).up()
    await lab.run("true")
    return lab


@asynccontextmanager
async def held(lab: Lab, code: str) -> AsyncIterator[int]:
    """A program in the box that has taken all it could get, and holds it; how much that was."""
    taking = asyncio.create_task(lab.execute("python3", "-c", code + HOLD, timeout=60))
    told = lab.box.log_file.follow(lab.box.log_file.size)
    try:
        async with asyncio.timeout(30):
            async for _, data in told:
                numbers = [line for line in data.decode(errors="replace").split() if line.isdigit()]
                if numbers:
                    yield int(numbers[-1])
                    break
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


async def took(lab: Lab, code: str) -> int:
    done = await lab.execute("python3", "-c", code + "print(n)")
    return int(done.stdout)


def answers_quickly(seconds: float) -> bool:
    """Well below what anybody waits for, and far above what a loaded machine adds."""
    return seconds < 2


@only_root
@pytest.mark.parametrize("code", [INOTIFY, SIGNALS, QUEUES], ids=["inotify", "queued-signals", "message-queues"])
async def test_what_the_kernel_counts_for_all_boxes_together_one_box_cannot_use_up(
    lab: Lab, neighbour: Lab, code: str
) -> None:
    async with held(lab, code) as mine:
        assert mine > 0
        assert await took(neighbour, code) >= 2, "a neighbour gets its share"
    libc = ctypes.CDLL(None)
    fd = libc.inotify_init1(0)
    assert fd >= 0
    os.close(fd)


async def test_pipes_at_their_largest_leave_the_neighbour_s_output_whole(lab: Lab, neighbour: Lab) -> None:
    async with held(lab, PIPES):
        done = await neighbour.run("seq 200000 | sort -n | tail -n 1; seq 100000 >&2")
        assert (done.stdout, len(done.stderr)) == (b"200000\n", 588895)


async def test_open_files_end_at_the_limit_of_a_process(lab: Lab, neighbour: Lab) -> None:
    async with held(lab, FILES) as many:
        assert 1000 < many <= 1 << 20
        assert (await neighbour.execute("cat", "/etc/hostname")).stdout == b"sandbox"


@needs_cgroups
async def test_a_fork_bomb_leaves_the_neighbour_and_the_box_itself_answering(lab: Lab, neighbour: Lab) -> None:
    bomb = asyncio.create_task(lab.run(":(){ :|:& };:; while :; do :; done", timeout=3))
    await asyncio.sleep(0.5)
    begun = time.monotonic()
    assert await neighbour.out("echo on") == "on"
    assert answers_quickly(time.monotonic() - begun)
    assert (await bomb).outcome == "timeout"
    assert await lab.out("echo on") == "on"
    assert len(lab.processes()) <= 3


@needs_cgroups
@pytest.mark.parametrize(
    "where", ["/dev/shm", "/dev", "/sys/fs/cgroup"], ids=["dev-shm", "dev", "the-tmpfs-above-the-cgroups"]
)
async def test_memory_file_systems_are_full_or_count_as_the_box_s_memory(lab: Lab, where: str) -> None:
    if not os.access(f"/proc/{lab.box.init}/root{where}", os.W_OK):
        pytest.skip(f"{where} is read-only here")
    fill = await lab.execute("dd", "if=/dev/zero", f"of={where}/fill", "bs=1M", "count=400")
    left = await lab.execute("stat", "-c", "%s", f"{where}/fill")
    size = int(left.stdout or 0)
    assert (fill.exit_code != 0 or fill.outcome != "ok") and size <= 128 << 20, (fill, size)
    stats = await lab.call("sandbox.stats", wire.Ref(id=lab.id))
    assert stats.memory_bytes <= stats.memory_limit == 128 << 20


async def test_no_other_memory_file_system_can_be_mounted(lab: Lab) -> None:
    done = await lab.execute("mount", "-t", "tmpfs", "-o", "size=100g", "none", "/mnt")
    assert done.exit_code != 0
    done = await lab.execute("mount", "-o", "remount,size=100g", "/dev/shm")
    assert done.exit_code != 0


@needs_cgroups
async def test_a_full_disk_and_no_more_inodes_are_the_box_s_own(host: SandboxHost, neighbour: Lab) -> None:
    lab = await Lab(host, disk="32m").up()
    try:
        filled = await lab.execute(
            "sh", "-c", "for f in /srv/big /etc/hosts /var/tmp/x; do head -c 100m /dev/zero >$f; done"
        )
        assert b"No space" in filled.stderr
        await lab.execute("sh", "-c", "rm -f /srv/big /var/tmp/x; : >/etc/hosts")
        many = (
            "import os\ntry:\n for i in range(10**6): os.close(os.open(f'/srv/{i}', 64))\nexcept OSError as e: print(e)"
        )
        assert b"No space" in (await lab.execute("python3", "-c", many, timeout=60)).stdout
        assert await lab.out("echo on") == "on"
        assert (await neighbour.execute("sh", "-c", "echo x >/srv/x && cat /srv/x")).stdout == b"x\n"
    finally:
        await lab.call("sandbox.delete", wire.Ref(id=lab.id))


async def test_endless_output_takes_neither_the_node_s_memory_nor_the_host_s_disk(lab: Lab, neighbour: Lab) -> None:
    before = _own_memory()
    done = await lab.execute("sh", "-c", "head -c 300m /dev/zero; head -c 300m /dev/zero >&2", timeout=60)
    assert done.truncated_bytes == (600 << 20) - len(done.stdout) - len(done.stderr)
    assert _own_memory() - before < 64 << 20
    spools = [path for path in _home_files() if lab.id in str(path)]
    assert sum(path.stat().st_blocks * 512 for path in spools) < 160 << 20
    assert await neighbour.out("echo on") == "on"


FLOOD = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
print(1, flush=True)
while True:
    os.write(fd, b"\\n" * 65536)
"""


@pytest.mark.parametrize("pipe", ["ctl", "state", "o1"])
async def test_a_flooded_pipe_of_a_session_costs_its_neighbour_nothing(lab: Lab, neighbour: Lab, pipe: str) -> None:
    await lab.run("true")
    task = asyncio.create_task(lab.execute("python3", "-c", FLOOD, f"/dev/rr/1/{pipe}", timeout=60))
    await asyncio.sleep(0.5)
    assert not task.done()
    ours, begun = time.process_time(), time.monotonic()
    for _ in range(50):
        await neighbour.run("true")
    await asyncio.sleep(0.3)
    spent = (time.process_time() - ours) / (time.monotonic() - begun)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert pipe != "ctl" or spent < 0.8, f"the node spent {spent:.0%} of a processor"
    # What is in the pipe of its own output is its own: only the exit code cannot be printed.
    done = await lab.run("echo on", timeout=10)
    assert (done.outcome, done.exit_code, done.stdout.strip()) == ("ok", 0, b"on")


async def test_names_and_arguments_as_long_as_they_get(lab: Lab) -> None:
    long = "n" * 255
    deep = "/srv" + f"/{long}" * 15
    await lab.out(f"mkdir -p {deep} && touch {deep}/{long[:100]}")
    listed = await lab.call("file.list", wire.ListFiles(id=lab.id, path=deep.encode()))
    assert [entry.name for entry in listed] == [long[:100]]
    assert (await lab.execute("sh", "-c", "exit 3", "x" * 100_000)).exit_code == 3
    done = await lab.execute(
        "bash", "-c", "exec -a $'\\x1b'$(head -c 100000 /dev/zero | tr '\\0' y) sleep 0.1 & sleep 0.05"
    )
    assert done.outcome == "ok"
    rows = await lab.call("sandbox.processes", wire.Ref(id=lab.id))
    assert all(len(row.command) <= 4096 for row in rows)


async def test_more_sessions_than_processes_are_refused_with_the_reason_and_nothing_hangs(
    host: SandboxHost, neighbour: Lab
) -> None:
    lab = await Lab(host, pids=8).up()

    async def one(number: int) -> str:
        try:
            return (await lab.run("echo on", session=f"s{number}", timeout=20)).outcome
        except RockrollError as error:
            return type(error).__name__

    outcomes = await asyncio.gather(*(one(number) for number in range(12)))
    assert "ok" in outcomes and set(outcomes) <= {"ok", "SessionError", "SandboxError", "closed"}, outcomes
    assert await neighbour.out("echo on") == "on"
    await lab.call("sandbox.delete", wire.Ref(id=lab.id))


def _own_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError


def _home_files() -> list[Path]:
    from rockroll import home

    return [path for path in home.home().rglob("*") if path.is_file()]
