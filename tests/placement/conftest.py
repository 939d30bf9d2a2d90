"""What the tests of clusters share: a cluster of two nodes with a hub, a client of it, and a Ray cluster of several
real raylets on this machine, each with a home of its own: what is not sent to another node is not found there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from rockroll.sandbox import where
from rockroll.sandbox.cluster.client import HubNode
from rockroll.sandbox.node_client import close_node, connect_to
from tests.placement.cluster import Host, Hub, cluster

Two = tuple[Hub, dict[str, Host]]
STORE = 80 * 2**20


class Nodes:
    """`add(…)` another node; `kill(node)` it as a power cut would: raylet and workers, none of which says anything."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        self.cluster = Cluster()
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        return self.cluster.address

    @property
    def ids(self) -> list[str]:
        """What Ray calls each."""
        return [node.node_id for node in self.nodes]

    def add(self, cpus: float, before: Callable[[Path], Any] = lambda home: None, **more: Any) -> Any:
        """before: told of the node's home before anything runs there."""
        home = self.folder / f"node-{len(self.nodes)}"
        home.mkdir(mode=0o700)
        before(home)
        kept = os.environ.get("ROCKROLL_HOME", "")
        os.environ["ROCKROLL_HOME"] = str(home)  # raylets and their workers inherit it
        try:
            node = self.cluster.add_node(
                num_cpus=cpus,
                object_store_memory=STORE,
                include_dashboard=False,
                **more,
            )
        finally:
            os.environ["ROCKROLL_HOME"] = kept
        node.home = home
        self.nodes.append(node)
        return node

    async def join(self, cpus: float, **more: Any) -> Any:
        """As `add`, for a test whose links must go on meanwhile."""
        import ray._private.utils

        # a signal's handler can be set on the main thread alone, and is of no use here
        with patch.object(ray._private.utils, "set_sigterm_handler", lambda handler: None):
            return await asyncio.to_thread(self.add, cpus, **more)

    def kill(self, node: Any) -> None:
        raylet = next(info.process.pid for info in node.all_processes["raylet"])
        children = _children(raylet)
        for pid in (raylet, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def end_sandboxes(self) -> None:
        """Of all nodes, also of those that were killed."""
        from rockroll.placement.ray import end_sandboxes

        end_sandboxes(self.address)
        with ThreadPoolExecutor() as side_by_side:
            list(side_by_side.map(lambda node: Host(node.home).end(), self.nodes))

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


def _children(pid: int) -> list[int]:
    """Of a process, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_children(child)]
    return found


@pytest.fixture(scope="module")
def make_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Nodes]]:
    """An empty cluster, gone at the end of the file."""
    pytest.importorskip("ray")
    made: list[Nodes] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("ROCKROLL_HOME", str(tmp_path_factory.mktemp("driver")))

        def make() -> Nodes:
            made.append(Nodes(tmp_path_factory.mktemp("nodes")))
            return made[-1]

        yield make
        for each in made:
            each.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, sandbox_image: str) -> Iterator[Two]:
    """A hub and the nodes left and right, for one file."""
    with cluster(tmp_path_factory.mktemp("cluster"), ["left", "right"]) as found:
        yield found


@pytest.fixture(scope="module")
def file(two: Two) -> Path:
    """By which the file's cluster is reached."""
    return two[0].file


@pytest.fixture
async def hub(file: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HubNode]:
    """This event loop's client of the cluster, which the environment names."""
    monkeypatch.setenv("ROCKROLL_CLUSTER", str(file))
    client = await connect_to(where.hub())
    assert isinstance(client, HubNode)
    yield client
    await close_node()
