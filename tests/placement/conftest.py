"""A Ray cluster of several real raylets on this machine, each with a home of its own: what is not sent to another node
is not found there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

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
