"""What the processes and nodes of a run report, wherever they are.

In: the run's parts. Out: numbers, each with the node that it is of, asked for when somebody wants them. Leaves showing
them to observe/prometheus.py, counting to those who report: engines by their pulse, processes by who holds them, nodes
by node.metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from rockroll import rpc
from rockroll.engine.api import Stats
from rockroll.engine.pool import EnginePool
from rockroll.errors import RockrollError
from rockroll.observe.number import Number
from rockroll.placement.local import Processes
from rockroll.placement.usage import Usage
from rockroll.sandbox import node_client
from rockroll.sandbox.cluster.client import HubNode
from rockroll.sandbox.wire import Empty, NodeMetrics

PATIENCE_S = 2.0
"""A node that has not answered by then is left out: Prometheus waits for the others."""


class Census:
    """Made on the run's event loop; called from any other thread."""

    def __init__(self, processes: Processes, engine: EnginePool | None, sandboxes: bool) -> None:
        """sandboxes: whether the run has any."""
        self._processes, self._engine, self._sandboxes = processes, engine, sandboxes
        self._loop = asyncio.get_running_loop()

    def __call__(self) -> Sequence[Number]:
        """Nothing where the run is just ending."""
        if self._loop.is_closed():
            return []
        asked = asyncio.run_coroutine_threadsafe(self.taken(), self._loop)
        try:
            return asked.result(2 * PATIENCE_S)
        except (RockrollError, TimeoutError):
            asked.cancel()
            return []

    async def taken(self) -> list[Number]:
        usages = await asyncio.to_thread(self._processes.usage)
        stats = self._engine.stats() if self._engine else {}
        nodes = await _nodes() if self._sandboxes else []
        return [*of_processes(usages), *of_engines(stats, {each.name: each.node for each in usages}), *of_nodes(nodes)]


async def _nodes() -> list[NodeMetrics]:
    """Of every node that answers in time, a cluster's under the names that they have there."""
    client = await node_client.connect_here()
    if not isinstance(client, HubNode):
        return [said] if (said := await _asked(client)) else []
    names = [view.name for view in client.nodes if view.state != "suspect"]
    said = await asyncio.gather(*(_asked(client, name) for name in names))
    return [each for each in said if each is not None]


async def _asked(node: rpc.Client | HubNode, name: str = "") -> NodeMetrics | None:
    """name: of the node in a cluster."""
    try:
        at = await node.at(name) if isinstance(node, HubNode) else node
        said = await at.call("node.metrics", Empty(), type=NodeMetrics, timeout=PATIENCE_S)
    except (RockrollError, TimeoutError):
        return None
    return msgspec.structs.replace(said, node=name or said.node)


def of_processes(usages: Sequence[Usage]) -> list[Number]:
    found = []
    for each in usages:
        labels = {"process": each.name, "node": each.node}
        found.append(Number("process_cpu_seconds", "CPU seconds of a process of the run.", labels, each.cpu_s, True))
        found.append(Number("process_memory_bytes", "Resident memory of it.", labels, each.memory))
    return found


_ENGINE: list[tuple[str, str, Callable[[Stats], float], bool]] = [
    ("engine_running", "Requests that an engine decodes together.", lambda stats: stats.running, False),
    ("engine_waiting", "Requests that have no place in its batch.", lambda stats: stats.waiting, False),
    ("engine_slots", "Requests that it can decode together.", lambda stats: stats.slots, False),
    ("engine_kv_use", "The part of the memory for keys and values in use.", lambda stats: stats.kv_use, False),
    ("engine_preemptions", "Requests that gave their memory back.", lambda stats: stats.preemptions, True),
    ("engine_steps", "Steps of its model.", lambda stats: stats.progress, True),
]


def of_engines(stats: dict[str, Stats], nodes: dict[str, str]) -> list[Number]:
    """stats: of those that serve, by name. nodes: where each is."""
    return [
        Number(name, says, {"engine": engine, "node": nodes.get(engine, "")}, float(value(said)), counter)
        for engine, said in sorted(stats.items())
        for name, says, value, counter in _ENGINE
    ]


def of_nodes(nodes: Sequence[NodeMetrics]) -> list[Number]:
    found = []
    for each in nodes:
        here: dict[str, Any] = {"node": each.node}
        for state, count in sorted(each.sandboxes.items()):
            found.append(Number("sandboxes", "Sandboxes of a node by state.", here | {"state": state}, count))
        waiting = sum(each.waiting.values())
        found.append(Number("admission_limit", "Starts and removals that may be under way there.", here, each.limit))
        found.append(Number("admission_running", "Those under way.", here, each.running))
        found.append(Number("admission_waiting", "Those that wait for their turn.", here, waiting))
    return found
