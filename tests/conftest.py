"""What every room's tests may ask for: a home and a node of their own, gone at the end."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rockroll import home, rpc
from rockroll.errors import PeerLost
from rockroll.sandbox import node_client, wire


@pytest.fixture(scope="module")
def node_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ROCKROLL_HOME of this test file's own. Its node starts on demand; node and boxes are removed at the end."""
    path = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROCKROLL_HOME", str(path))
        yield path
        asyncio.run(_remove_node())
        shutil.rmtree(home.runtime_dir())


@pytest.fixture
async def node(node_home: Path) -> AsyncIterator[rpc.Client]:
    """This event loop's client of the node; closed at the end, and with it the boxes that the test made."""
    yield await node_client.connect_node()
    await node_client.close_node()


async def _remove_node() -> None:
    try:
        client = await rpc.connect(node_client.address_path().read_text())
    except (FileNotFoundError, PeerLost):
        return
    for info in await client.call("sandbox.list", wire.Empty(), type=list[wire.SandboxInfo]):
        await client.call("sandbox.delete", wire.Ref(id=info.id))
    pid = (await client.call("node.info", wire.Empty(), type=wire.NodeInfo)).pid
    await client.close()
    end_process(pid)


def end_process(pid: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Ends a process that is not our child and waits until it is gone."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, number)
        gone, _, _ = select.select([pidfd], [], [], 30)
        assert gone, f"process {pid} did not end within 30 s of {number.name}"
    finally:
        os.close(pidfd)
