"""What the warden promises: one a home, there as long as something is to be guarded, and small."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rockroll import Sandbox, SandboxConfig, home
from rockroll.placement import warden
from rockroll.sandbox import node_client
from rockroll.sandbox.linux.process import birth
from rockroll.sandbox.wire import Empty, NodeInfo

ARGV = [sys.executable, "-I", "-S", str(Path(warden.__file__))]


def say(folder: Path, **what: object) -> None:
    (folder / "guard.json").write_text(json.dumps({"command": ["false"], **what}))


async def start(folder: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*ARGV, str(folder), str(folder / "log"))


async def test_with_nothing_to_guard_it_ends_at_once(tmp_path: Path) -> None:
    assert await (await start(tmp_path)).wait() == 0
    say(tmp_path, wake=None)
    assert await (await start(tmp_path)).wait() == 0


async def guarded(tmp_path: Path) -> tuple[asyncio.subprocess.Process, asyncio.subprocess.Process]:
    """(a stand-in for a node, its warden, which holds the lock)."""
    node = await asyncio.create_subprocess_exec("sleep", "1000")
    say(tmp_path, node=[node.pid, birth(node.pid)])
    first = await start(tmp_path)
    lock = tmp_path / "warden.lock"
    async with asyncio.timeout(10):
        while not lock.exists() or not lock.read_text():
            await asyncio.sleep(0.01)
    return node, first


async def test_there_is_one_a_home_and_it_is_small(tmp_path: Path) -> None:
    node, first = await guarded(tmp_path)
    assert await (await start(tmp_path)).wait() == warden.HELD
    status = Path(f"/proc/{first.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 20_000
    say(tmp_path, wake=None)
    node.kill()
    assert await asyncio.wait_for(first.wait(), 10) == 0
    await node.wait()


async def test_a_killed_node_is_followed_by_the_command_it_named_and_a_failing_one_not_for_ever(tmp_path: Path) -> None:
    node, first = await guarded(tmp_path)
    started = tmp_path / "started"
    say(
        tmp_path,
        node=[node.pid, birth(node.pid)],
        command=["sh", "-c", f"echo x >>{started}; echo ready >&${{2#--ready-fd=}}; exit 1", "sh"],
    )
    os.kill(first.pid, signal.SIGHUP)
    node.kill()
    await node.wait()
    async with asyncio.timeout(10):
        while not started.exists() or started.read_text().count("x") < 2:
            await asyncio.sleep(0.02)
    assert started.read_text().count("x") == 2  # at once, then after one second, then two
    say(tmp_path, wake=None)
    with contextlib.suppress(ProcessLookupError):
        os.kill(first.pid, signal.SIGHUP)
    # Python lets go of its handlers first when it ends: a signal may still meet it then.
    assert await asyncio.wait_for(first.wait(), 10) in (0, -signal.SIGHUP)


async def test_it_sleeps_until_the_first_time_to_live_when_the_node_has_ended(
    node_home: Path, end_process: Callable[..., None]
) -> None:
    sandbox = await Sandbox(SandboxConfig(memory="64m", ttl="3s"), owner="detached").start()
    client = await node_client.connect_node()
    pid = (await client.call("node.info", Empty(), type=NodeInfo)).pid
    await node_client.close_node()
    await asyncio.to_thread(end_process, pid)
    assert json.loads((home.node_dir() / "guard.json").read_text())["wake"] is not None
    name = f"rockroll-{home.home_id()}-{sandbox.id}"
    async with asyncio.timeout(15):  # nobody calls: the warden alone brings a node
        while True:
            process = await asyncio.create_subprocess_exec(
                "podman", "container", "exists", name, stdout=subprocess.DEVNULL
            )
            if await process.wait() != 0:
                break
            await asyncio.sleep(0.2)
    with pytest.raises(Exception, match="its time to live was over"):
        await Sandbox.attach(sandbox.id)
    await node_client.close_node()
