"""What every room's tests may ask for: a home and a node of their own, gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from rockroll import home, rpc
from rockroll.errors import HostError, PeerLost, SandboxNotFound
from rockroll.sandbox import disk, image, node_client, wire
from rockroll.sandbox.podman import HOME_LABEL, Podman, PodmanService


@pytest.fixture(scope="session")
def sandbox_image() -> str:
    """The default image, made if it is missing: every home of this user shares one store."""

    async def make() -> str:
        async with PodmanService() as podman:
            return (await image.ensure(podman)).name

    return asyncio.run(make())


@pytest.fixture(scope="module")
def node_home(tmp_path_factory: pytest.TempPathFactory, sandbox_image: str) -> Iterator[Path]:
    """A ROCKROLL_HOME of this test file's own. Its node starts on demand; node and boxes are removed at the end."""
    path = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROCKROLL_HOME", str(path))
        yield path
        asyncio.run(_remove_node())
        asyncio.run(_sweep())
        shutil.rmtree(home.runtime_dir())


@pytest.fixture
async def podman_service(node_home: Path) -> AsyncIterator[PodmanService]:
    """A Podman service of this event loop. At the end it is gone, and every box of this home with it."""
    service = PodmanService()
    await service.start()
    yield service
    mine = {HOME_LABEL: home.home_id()}
    try:
        boxes = await service.podman.list(mine)
    except HostError:  # the test killed it
        await service.close()
        boxes = await (await service.start()).list(mine)
    for box in boxes:
        await service.podman.remove(box["Id"])
    await service.close()


@pytest.fixture
async def podman(podman_service: PodmanService) -> Podman:
    """The client of this event loop's Podman service."""
    return podman_service.podman


@pytest.fixture
async def node(node_home: Path) -> AsyncIterator[rpc.Client]:
    """This event loop's client of the node; closed at the end, and with it the boxes that the test made."""
    yield await node_client.connect_node()
    await node_client.close_node()


async def _sweep() -> None:
    """What the next node of this home would do: a box whose creation was under way when a test killed its node."""
    async with PodmanService() as podman:
        for box in await podman.list({HOME_LABEL: home.home_id()}):
            await podman.remove(box["Id"])
    disk.sweep(())


async def _remove_node() -> None:
    try:
        client = await rpc.connect(node_client.address_path().read_text())
    except (FileNotFoundError, PeerLost):
        return
    for info in await client.call("sandbox.list", wire.Empty(), type=list[wire.SandboxInfo]):
        with contextlib.suppress(SandboxNotFound):  # the removal of a test's last box may still be under way
            await client.call("sandbox.delete", wire.Ref(id=info.id))
    pid = (await client.call("node.info", wire.Empty(), type=wire.NodeInfo)).pid
    await client.close()
    _end_process(pid)


@pytest.fixture(scope="session")
def end_process() -> Callable[..., None]:
    """end_process(pid, signal=SIGTERM): ends a process that is not our child and waits until it is gone."""
    return _end_process


def _end_process(pid: int, number: signal.Signals = signal.SIGTERM) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, number)
        gone, _, _ = select.select([pidfd], [], [], 30)
        assert gone, f"process {pid} did not end within 30 s of {number.name}"
    finally:
        os.close(pidfd)
