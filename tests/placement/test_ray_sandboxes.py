"""placement.ray.cluster_file: the sandboxes of a Ray cluster, wherever Ray has a node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rockroll import Sandbox, SandboxConfig
from rockroll.sandbox import where
from rockroll.sandbox.cluster.client import HubNode
from rockroll.sandbox.node_client import close_node, connect_to
from tests.placement.cluster import Host
from tests.placement.conftest import Nodes

pytestmark = pytest.mark.timeout(400)
SMALL = SandboxConfig(memory="64m", pids=64)


@pytest.fixture(scope="module")
def nodes(make_nodes: Callable[[], Nodes], sandbox_image: str) -> Iterator[Nodes]:
    """A head, where this process is, and another node."""
    made = make_nodes()
    made.add(1)
    made.add(1)
    yield made
    from rockroll.placement.ray import end_sandboxes

    end_sandboxes(made.address)
    with ThreadPoolExecutor() as side_by_side:
        list(side_by_side.map(lambda node: Host(node.home).end(), made.nodes))


@pytest.fixture(scope="module")
def file(nodes: Nodes) -> Path:
    from rockroll.placement.ray import cluster_file

    return cluster_file(nodes.address)


@pytest.fixture
async def hub(file: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HubNode]:
    monkeypatch.setenv("ROCKROLL_CLUSTER", str(file))
    client = await connect_to(where.hub())
    assert isinstance(client, HubNode)
    yield client
    await close_node()


async def test_every_node_of_the_cluster_has_sandboxes(hub: HubNode) -> None:
    async with Sandbox(SMALL) as one, Sandbox(SMALL) as other:
        assert one.info.node != other.info.node
        assert [(await box.execute(["echo", "here"])).stdout for box in (one, other)] == [b"here\n", b"here\n"]


async def test_the_file_is_the_same_for_whoever_asks(nodes: Nodes, file: Path) -> None:
    from rockroll.placement.ray import cluster_file

    before = file.read_bytes()
    assert cluster_file(nodes.address) == file
    assert file.read_bytes() == before and file.stat().st_mode & 0o077 == 0


@pytest.mark.slow
async def test_a_node_that_is_added_is_asked_at_once_and_joins(nodes: Nodes, hub: HubNode) -> None:
    import ray

    from rockroll.placement.on_ray import keeper
    from rockroll.placement.ray import joined

    names = {node.name for node in hub.nodes}
    nodes.add(1)
    begun = time.monotonic()
    with joined(nodes.address):
        actor = ray.get_actor(keeper.NAME, keeper.NAMESPACE)
        while len(await actor.settled.remote(0)) < len(nodes.nodes):
            assert time.monotonic() - begun < 5, "Ray's news of the node did not come"
            await asyncio.sleep(0.1)
    while {node.name for node in hub.nodes} == names:  # its node process starts; how fast is up to the machine
        await asyncio.sleep(0.1)
    print(f"used {time.monotonic() - begun:.1f} s after Ray had it")


@pytest.mark.slow
def test_a_node_without_sandboxes_is_told_of_and_asked_again(nodes: Nodes, file: Path) -> None:
    from rockroll.placement.ray import sandboxes_of_run

    node = nodes.add(1, before=lambda home: (home / "node.yaml").write_text("quotas: many"))
    broken = node.home / "node.yaml"
    found, said = sandboxes_of_run(nodes.address)
    assert found == file
    assert "none on" in said and "quotas" in said and f"of {len(nodes.nodes)} nodes" in said, said
    broken.unlink()
    assert sandboxes_of_run(nodes.address) == (file, "")


@pytest.mark.slow
async def test_a_sandbox_outlives_the_raylet_of_its_node(nodes: Nodes, hub: HubNode) -> None:
    async with Sandbox(SMALL) as one, Sandbox(SMALL) as two, Sandbox(SMALL) as three:
        nodes.kill(nodes.nodes[1])
        assert [(await box.execute(["true"])).exit_code for box in (one, two, three)] == [0, 0, 0]
