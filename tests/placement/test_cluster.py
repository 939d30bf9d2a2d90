"""A cluster of two nodes on one machine: the same Sandbox, wherever the box is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rockroll import Sandbox, SandboxConfig
from rockroll.errors import NoRoom, SandboxNotFound
from rockroll.sandbox import where
from rockroll.sandbox.client import list_sandboxes
from rockroll.sandbox.cluster.client import HubNode
from rockroll.sandbox.node_client import close_node, connect_to
from tests.placement.cluster import Host, Hub, cluster

SMALL = SandboxConfig(memory="64m", pids=64)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, sandbox_image: str) -> Iterator[tuple[Hub, dict[str, Host]]]:
    with cluster(tmp_path_factory.mktemp("cluster"), ["left", "right"]) as found:
        yield found


@pytest.fixture
async def hub(two: tuple[Hub, dict[str, Host]], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HubNode]:
    """This event loop's client of the cluster, which the environment names."""
    monkeypatch.setenv("ROCKROLL_CLUSTER", str(two[0].file))
    client = await connect_to(where.hub())
    assert isinstance(client, HubNode)
    yield client
    await close_node()


async def test_boxes_spread_over_the_nodes_and_are_used_as_any(hub: HubNode) -> None:
    async with Sandbox(SMALL) as one, Sandbox(SMALL) as other:
        assert {one.info.node, other.info.node} == {"left", "right"}
        for box in (one, other):
            assert (await box.arun("echo $((6 * 7)); x=1")).stdout == b"42\n"
            assert (await box.arun("echo $x")).stdout == b"1\n"
            await box.write_file("/data/a", os.urandom(300_000))
            assert len(await box.read_file("/data/a")) == 300_000
        assert {info.id: info.node for info in await list_sandboxes()} == {
            box.id: box.info.node for box in (one, other)
        }
    assert await list_sandboxes() == []
