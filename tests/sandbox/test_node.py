"""What the node process promises: there when needed, one a home, gone when not, and nothing left of it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from rockroll import Sandbox, SandboxConfig, home, rpc
from rockroll.errors import HostError, PeerLost, SandboxLost, SandboxNotFound
from rockroll.sandbox import node_client
from rockroll.sandbox.container.podman import HOME_LABEL
from rockroll.sandbox.wire import Empty, NodeInfo

SMALL = SandboxConfig(memory="128m", pids=64)
EndProcess = Callable[..., None]


@pytest.fixture(autouse=True)
async def own_home(node_home: Path) -> AsyncIterator[None]:
    yield
    await node_client.close_node()


async def node_pid() -> int:
    client = await node_client.connect_node()
    return (await client.call("node.info", Empty(), type=NodeInfo)).pid


def containers() -> list[str]:
    """Every container of this home that Podman knows, whatever its state."""
    argv = ["podman", "ps", "--all", "--quiet", "--filter", f"label={HOME_LABEL}={home.home_id()}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


async def test_many_processes_at_once_start_one_node() -> None:
    script = (
        "import asyncio\n"
        "from rockroll.sandbox.node_client import connect_node\n"
        "async def main(): print((await (await connect_node()).call('node.info', {}))['pid'])\n"
        "asyncio.run(main())"
    )
    argv = [sys.executable, "-c", script]
    started = [await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE) for _ in range(3)]
    pids = {int((await each.communicate())[0]) for each in started}
    assert pids == {await node_pid()}


async def test_tasks_of_one_loop_share_one_client() -> None:
    clients = await asyncio.gather(*(node_client.connect_node() for _ in range(5)))
    assert len(set(map(id, clients))) == 1


async def test_a_node_without_client_and_sandbox_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path))
    argv = [sys.executable, "-m", node_client.NODE_MODULE, "--idle", "0.2"]
    process = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.PIPE)
    _, log = await process.communicate()
    assert process.returncode == 0
    assert b"no client and no sandbox" in log
    assert not node_client.address_path().exists()
    assert list(home.runtime_dir().iterdir()) == []
    home.runtime_dir().rmdir()


async def test_sigterm_removes_the_boxes_of_connections_and_keeps_detached_ones(end_process: EndProcess) -> None:
    pid = await node_pid()
    sandbox = await Sandbox(SMALL).start()
    kept = await Sandbox(SandboxConfig(name="kept", memory="128m"), owner="detached").start()
    await kept.write_file("/srv/file", b"still here")
    await asyncio.to_thread(end_process, pid)
    with pytest.raises((SandboxLost, SandboxNotFound)):
        await sandbox.arun("true")
    assert len(containers()) == 1
    again = await Sandbox.attach("kept")  # on a new node
    assert await node_pid() != pid
    assert await again.read_file("/srv/file") == b"still here"
    assert (await again.arun("cat /srv/file")).stdout == b"still here"
    await again.delete()
    assert containers() == []


async def test_a_killed_node_costs_the_call_under_way_and_the_next_one_goes_on(end_process: EndProcess) -> None:
    sandbox = await Sandbox(SMALL).start()
    await sandbox.arun("cd /srv; x=kept; f() { echo f $x; }; echo data >file")
    running = asyncio.ensure_future(sandbox.arun("sleep 1000"))
    await asyncio.sleep(0.2)
    before = await node_pid()
    await asyncio.to_thread(end_process, before, signal.SIGKILL)
    with pytest.raises(SandboxLost, match="node") as told:
        await running
    assert told.value.fields["cause"] == "node_lost"
    seen = await sandbox.arun("f; pwd; cat file; pgrep -r D,R,S,T -c sleep")
    assert (seen.stdout, seen.session_restarted) == (b"f kept\n/srv\ndata\n0\n", True)
    assert await node_pid() != before and sandbox.connected
    await node_client.close_node()  # it is held by this connection again, and goes with it
    with pytest.raises(SandboxNotFound, match="the process that owned it ended"):
        while True:
            await Sandbox.attach(sandbox.id)
    assert containers() == []


async def test_a_box_that_must_not_outlive_its_node_is_lost_with_it(end_process: EndProcess) -> None:
    sandbox = await Sandbox(SMALL, outlives_node=False).start()
    await asyncio.to_thread(end_process, await node_pid(), signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(SandboxLost, match="node"):
            await sandbox.arun("true")
    await sandbox.delete()
    assert containers() == []


async def test_delete_keeps_its_word_although_the_node_was_killed(end_process: EndProcess) -> None:
    async with Sandbox(SMALL):
        await asyncio.to_thread(end_process, await node_pid(), signal.SIGKILL)
    assert containers() == []


async def test_a_node_that_cannot_start_says_why_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path))
    await node_client.close_node()
    taken = home.node_address().removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(taken)
        other.listen()
        with pytest.raises(HostError, match=r"(?s)died at its start.*cannot listen at"):
            await node_client.connect_node()
    Path(taken).unlink()
    home.runtime_dir().rmdir()


async def test_a_second_node_of_one_home_does_not_serve() -> None:
    pid = await node_pid()
    client = await rpc.connect(node_client.address_path().read_text())
    argv = [sys.executable, "-m", node_client.NODE_MODULE]
    second = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.DEVNULL)
    with pytest.raises(TimeoutError):  # it waits for the first to end
        await asyncio.wait_for(second.wait(), 1.5)
    assert (await client.call("node.info", Empty(), type=NodeInfo)).pid == pid
    second.kill()
    await second.wait()
    await client.close()


async def test_nobody_answering_is_told_at_once() -> None:
    with pytest.raises(PeerLost):
        await rpc.connect("unix:///tmp/rockroll-nobody.sock")


async def test_the_box_knows_where_its_model_is() -> None:
    async with Sandbox(SMALL) as sandbox:
        seen = await sandbox.execute(
            [
                "python3",
                "-c",
                "import os, json; print(json.dumps([os.environ['OPENAI_BASE_URL'], os.environ['OPENAI_API_KEY']]))",
            ]
        )
        assert json.loads(seen.stdout) == ["http://127.0.0.1:41414/v1", "rockroll"]
        assert (await sandbox.arun("echo $OPENAI_BASE_URL")).stdout == b"http://127.0.0.1:41414/v1\n"
