"""The sandboxes of a Ray cluster: one actor on the head that keeps the hub, and sees to it that every node joins.

In: Ray's news of nodes. Out: a cluster file for whoever asks. A node is joined by a task that is placed on it; its node
process is a daemon of its own then, so that no worker of Ray has to stay. Leaves what is done on a node to fabric.py.

    node alive ──► asked to join ──► member ──► dead: the hub notices by itself
                        └──► cannot run sandboxes: said why; asked again when somebody wants the cluster file
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rockroll.errors import HostError
from rockroll.placement.on_ray import fabric

NAME, NAMESPACE = "rockroll-sandboxes", "rockroll"
JOINED_S = 180.0
"""A node process needs some seconds to start, and on a machine with forty things to do at once, a minute."""
_log = logging.getLogger(__name__)


class Keeper:
    """Detached, on the head node."""

    def __init__(self) -> None:
        asyncio.set_event_loop_policy(None)
        self._hub = fabric.HubProcess(ray.util.get_node_ip_address())
        self._gcs = ray.get_runtime_context().gcs_address
        self._changed = threading.Condition()
        self._known: dict[str, dict[str, Any]] = {}
        """What Ray says of those alive."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._nodes: dict[str, str | None] = {}
        """By Ray's id, of those alive: "" a member, a sentence why it is none, None not known yet."""
        threading.Thread(target=lambda: asyncio.run(self._watch()), daemon=True).start()

    def file(self) -> bytes:
        return self._hub.file.read_bytes()

    def settled(self, timeout: float) -> dict[str, str]:
        """Once all nodes that are alive have joined or said why not: what they said. At most `timeout` seconds. Those
        that had not joined are asked again: a busy machine may have been all that was wrong."""
        with self._changed:
            for node in [node for node, said in self._nodes.items() if said]:
                assert self._loop is not None, "nodes are known once they are watched"
                self._nodes[node] = None
                asyncio.run_coroutine_threadsafe(self._join(self._known[node]), self._loop)
            self._changed.wait_for(lambda: self._nodes and None not in self._nodes.values(), timeout)
            return {node: "it has not answered yet" if said is None else said for node, said in self._nodes.items()}

    def end(self) -> None:
        """Every node leaves; then there is no hub."""
        asked = [
            _LEAVE.options(scheduling_strategy=_on(node)).remote() for node, said in self._nodes.items() if said == ""
        ]
        ray.wait(asked, num_returns=len(asked), timeout=30) if asked else None
        self._hub.stop()

    async def _watch(self) -> None:
        """Follows Ray's news of nodes; after news, and first of all, looks who is there."""
        from ray._private.gcs_pubsub import GcsAioNodeInfoSubscriber

        self._loop = asyncio.get_running_loop()
        news = GcsAioNodeInfoSubscriber(address=self._gcs)
        await news.subscribe()
        joining: set[asyncio.Task[None]] = set()
        while True:
            alive = [node for node in ray.nodes() if node["Alive"]]
            with self._changed:
                new = [node for node in alive if node["NodeID"] not in self._nodes]
                self._known = {node["NodeID"]: node for node in alive}
                self._nodes = {node["NodeID"]: self._nodes.get(node["NodeID"]) for node in alive}
                self._changed.notify_all()
            for node in new:
                task = asyncio.ensure_future(self._join(node))
                joining.add(task)
                task.add_done_callback(joining.discard)
            await news.poll(batch_size=1000)

    async def _join(self, node: dict[str, Any]) -> None:
        name = f"{node['NodeManagerHostname']}-{node['NodeID'][:8]}"
        work = _JOIN.options(scheduling_strategy=_on(node["NodeID"])).remote(self.file(), name)
        try:
            await asyncio.wait_for(_answer(work), JOINED_S)
            said = ""
        except (RayError, TimeoutError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            said = f"{name} ({node['NodeManagerAddress']}): {lines[-1]}"
            _log.warning("no sandboxes on %s", said)
        with self._changed:
            if node["NodeID"] in self._nodes:
                self._nodes[node["NodeID"]] = said
            self._changed.notify_all()


async def _answer(reference: Any) -> Any:
    return await reference


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


_JOIN: Any = ray.remote(num_cpus=0, max_retries=0)(fabric.join)
_LEAVE: Any = ray.remote(num_cpus=0, max_retries=0)(fabric.leave)
_KEEPER: Any = ray.remote(Keeper)


def cluster_file() -> Path:
    """The file by which clients reach this cluster's sandboxes; hub and nodes are started where they are not there.

    Called in the cluster. HostError where no node can run sandboxes.
    """
    head = next((n["NodeID"] for n in ray.nodes() if n["Alive"] and "node:__internal_head__" in n["Resources"]), None)
    if head is None:
        raise HostError("Ray's head node is gone; start it again: ray start --head")
    keeper = _KEEPER.options(
        name=NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=8,
        scheduling_strategy=_on(head),
    ).remote()
    try:
        said: Any = ray.get(keeper.settled.remote(JOINED_S), timeout=JOINED_S + fabric.READY_S)
        file: Any = ray.get(keeper.file.remote(), timeout=10)
    except (RayError, TimeoutError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise HostError(f"the hub of this cluster's sandboxes does not answer: {lines[-1]}") from None
    if all(said.values()):
        why = "; ".join(sorted(said.values()))
        raise HostError(f"no node of this cluster can run sandboxes: {why}; rockroll doctor --ray looks at each")
    name = ray.get_runtime_context().gcs_address.replace(":", "-").replace("[", "").replace("]", "")
    return fabric.write(file, fabric.folder() / f"ray-{name}.json")


def end() -> None:
    """Sandboxes' nodes leave, the hub ends. Nothing happens where there is none."""
    try:
        keeper = ray.get_actor(NAME, NAMESPACE)
    except ValueError:
        return
    ray.get(keeper.end.remote(), timeout=60)
    ray.kill(keeper)
