"""placement.ray.cluster_file: the sandboxes of a Ray cluster, wherever Ray has a node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from rockroll import Sandbox, SandboxConfig
from rockroll.sandbox.cluster.client import HubNode
from tests.placement.cluster import Pace
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
    made.end_sandboxes()


@pytest.fixture(scope="module")
def file(nodes: Nodes) -> Path:
    from rockroll.placement.ray import cluster_file

    return cluster_file(nodes.address)


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
async def test_a_node_that_is_added_is_used_within_ten_seconds(nodes: Nodes, hub: HubNode) -> None:
    import ray

    from rockroll.placement.on_ray import keeper
    from rockroll.placement.on_ray.joining import joined

    async with AsyncExitStack() as boxes:
        while {view.name[-8:] for view in await hub.refresh() if view.boxes} != {id[:8] for id in nodes.ids}:
            await boxes.enter_async_context(Sandbox(SMALL))  # there is none without a box
        node = await nodes.join(1)
        begun = time.monotonic()
        with Pace() as pace, joined(nodes.address):
            actor: Any = ray.get_actor(keeper.NAME, keeper.NAMESPACE)
            while len(await actor.settled.remote(0)) < len(nodes.nodes):
                await asyncio.sleep(0.05)
            told = time.monotonic() - begun
            while not any(view.name.endswith(node.node_id[:8]) for view in hub.nodes):
                await asyncio.sleep(0.05)
            member = time.monotonic() - begun
            box = await boxes.enter_async_context(Sandbox(SMALL))
            used = time.monotonic() - begun
        assert box.info.node.endswith(node.node_id[:8]), "the emptiest node is taken"
    stages = f"known after {told:.1f} s, a member {member:.1f} s, used {used:.1f} s"
    print(f"{stages}, on a machine {pace.factor:.1f} times slower than idle")
    assert told < 5 * pace.factor, "Ray's news of the node did not come"
    assert used < 10 * pace.factor, stages


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
