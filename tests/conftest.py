"""What every room's tests may ask for: a home and a node of their own, gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from rockroll import home, rpc
from rockroll.errors import HostError, SandboxNotFound
from rockroll.sandbox import node_client, wire
from rockroll.sandbox.container import image, runtime
from rockroll.sandbox.container.podman import HOME_LABEL, Podman, PodmanService

# A node of an ordinary user runs as root of a user namespace of his own: os.getuid() alone does not tell.
IS_ROOT = os.getuid() == 0 and not runtime.is_rootless()
LIMITS_HOLD = IS_ROOT or Path("/sys/fs/cgroup/cgroup.controllers").exists()
"""On cgroup v1 the kernel lets no ordinary user limit anything."""
needs_limits = pytest.mark.skipif(
    not LIMITS_HOLD, reason="cgroup v1 lets no ordinary user limit a box or count its use"
)
needs_freezer = pytest.mark.skipif(
    not LIMITS_HOLD, reason="cgroup v1 lets no ordinary user hold a running box still while its files are copied"
)


def allow_unenforced(home: Path) -> None:
    """Where this user's limits do not hold, the node of this home makes boxes without: the rest of it is tested."""
    if not LIMITS_HOLD:
        (home / "node.yaml").write_text("limits: {allow_unenforced: true}\n")


settings.register_profile("rockroll", deadline=None)  # a busy machine is no fault of what is tested
settings.load_profile("rockroll")


@pytest.fixture(scope="session")
def sandbox_image() -> str:
    """The default image, made if it is missing: every home of this user shares one store."""

    async def make() -> str:
        async with PodmanService() as podman:
            return (await image.ensure(podman)).name

    return asyncio.run(make())


@pytest.fixture(scope="module")
def node_home(tmp_path_factory: pytest.TempPathFactory, sandbox_image: str) -> Iterator[Path]:
    """A ROCKROLL_HOME of this test file's own. Its node starts on demand; node and boxes are removed at the end, and
    nothing of them is left: whatever a test killed, the next node has swept it."""
    path = tmp_path_factory.mktemp("home")
    allow_unenforced(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROCKROLL_HOME", str(path))
        yield path
        asyncio.run(_remove_node())
        asyncio.run(_nothing_left())
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


async def _nothing_left() -> None:
    async with PodmanService() as podman:
        assert await podman.list({HOME_LABEL: home.home_id()}) == []
    assert list((home.runtime_dir() / "b").glob("*")) == []
    assert list((home.node_dir() / "sessions").glob("*")) == []
    assert list((home.node_dir() / "disks").glob("*")) == []


async def _remove_node() -> None:
    """Ends the node and its warden. A node that was killed is followed by another first, which sweeps."""
    said = home.node_dir() / "guard.json"
    if not said.exists() or "node" not in json.loads(said.read_text()):
        return  # none was ever started, or the last one ended in order
    client = await node_client.connect_node()
    for info in await client.call("sandbox.list", wire.Empty(), type=list[wire.SandboxInfo]):
        with contextlib.suppress(SandboxNotFound):  # the removal of a test's last box may still be under way
            await client.call("sandbox.delete", wire.Ref(id=info.id))
    pid = (await client.call("node.info", wire.Empty(), type=wire.NodeInfo)).pid
    await node_client.close_node()
    _end_process(pid)
    with contextlib.suppress(ProcessLookupError):
        _wait_for_end(int((home.node_dir() / "warden.lock").read_text().split()[0]))


@pytest.fixture(scope="session")
def end_process() -> Callable[..., None]:
    """end_process(pid, signal=SIGTERM): ends a process that is not our child and waits until it is gone."""
    return _end_process


def _end_process(pid: int, number: signal.Signals = signal.SIGTERM) -> None:
    _wait_for_end(pid, number)


def _wait_for_end(pid: int, number: signal.Signals | None = None) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        if number is not None:
            signal.pidfd_send_signal(pidfd, number)
        gone, _, _ = select.select([pidfd], [], [], 30)
        assert gone, f"process {pid} did not end within 30 s"
    finally:
        os.close(pidfd)


@pytest.fixture(scope="module")
def server(node_home: Path) -> Iterator[str]:
    """The URL of a `rockroll serve` of this home, a process of its own. Its token is found in the home."""
    argv = [sys.executable, "-m", "rockroll", "serve", "--port", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        try:
            yield line.split()[1]
        finally:
            process.terminate()
            assert process.wait(30) == 0, "the server did not end well"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--over-http", action="store_true", help="sandboxes of the SDK's tests are reached over HTTP")
    parser.addoption("--screenshots", action="store_true", help="write what docs/view.md shows into docs/images")


@pytest.fixture(scope="module", autouse=True)
def _over_http(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.config.getoption("--over-http"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROCKROLL_BASE_URL", request.getfixturevalue("server"))
        yield
