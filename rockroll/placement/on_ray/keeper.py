"""The sandboxes of a Ray cluster: one actor on the head that keeps the hub, and sees to it that every node joins.

In: Ray's news of nodes. Out: a cluster file for whoever asks. A node is joined by a task that is placed on it; its node
process is a daemon of its own then, so that no worker of Ray has to stay. Leaves what is done on a node to fabric.py,
growing and shrinking to scaling.py.

    node alive ──► asked to join ──► member ──► dead: the hub notices by itself
                      ▲   └──► cannot run sandboxes: said why ──┐
                      └── after AGAIN_S, then twice that, … or when somebody wants the cluster file
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rockroll.errors import HostError
from rockroll.placement.on_ray import fabric
from rockroll.placement.on_ray.demand import Waits
from rockroll.placement.on_ray.scaling import Member, Scaling
from rockroll.placement.on_ray.why import why

NAME, NAMESPACE = "rockroll-sandboxes", "rockroll"
_HEAD = "node:__internal_head__"
JOINED_S = 180.0
"""A node process needs some seconds to start, and on a machine with forty things to do at once, a minute."""
AGAIN_S, AGAIN_MOST_S = 20.0, 600.0
"""A node that could not join may only have been busy; nothing tells when it is not any more."""
_log = logging.getLogger(__name__)


class Sandboxes(NamedTuple):
    """Those of a cluster."""

    file: Path
    """By which clients reach them."""
    nodes: int
    """How many are alive."""
    without: list[str]
    """Why those that have no sandboxes have none, a sentence each, which begins with the node."""


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
        self._again: dict[str, asyncio.Event] = {}
        """Of nodes that could not join: told to be asked once more, now."""
        self._members: dict[str, Member] = {}
        self._scaling = Scaling(self._hub.file)
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
                self._loop.call_soon_threadsafe(self._again[node].set)
            self._changed.wait_for(lambda: self._nodes and None not in self._nodes.values(), timeout)
            return {node: "it has not answered yet" if said is None else said for node, said in self._nodes.items()}

    def want(self, who: str, waits: Waits) -> None:
        """What somebody waits for (scaling.py)."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._scaling.want, who, waits)

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
        joining: set[asyncio.Task[None]] = {asyncio.ensure_future(self._scaling.run(self._members))}
        while True:
            alive = [node for node in ray.nodes() if node["Alive"]]
            with self._changed:
                new = [node for node in alive if node["NodeID"] not in self._nodes]
                self._known = {node["NodeID"]: node for node in alive}
                self._nodes = {node["NodeID"]: self._nodes.get(node["NodeID"]) for node in alive}
                self._changed.notify_all()
            self._members.clear()
            self._members.update({node["NodeID"]: _member(node) for node in alive})
            for node in new:
                task = asyncio.ensure_future(self._join(node))
                joining.add(task)
                task.add_done_callback(joining.discard)
            await news.poll(batch_size=1000)

    async def _join(self, node: dict[str, Any]) -> None:
        """Until the node is a member, or gone."""
        id, pause = node["NodeID"], AGAIN_S
        again = self._again[id] = asyncio.Event()
        while (said := await self._asked(node)) and id in self._known:
            with self._changed:
                self._nodes[id] = said
                self._changed.notify_all()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(again.wait(), pause)
            again.clear()
            pause = min(2 * pause, AGAIN_MOST_S)
        with self._changed:
            if id in self._nodes:
                self._nodes[id] = said
            self._changed.notify_all()

    async def _asked(self, node: dict[str, Any]) -> str:
        """Why it does not join; "": it has."""
        name = _member(node).name
        work = _JOIN.options(scheduling_strategy=_on(node["NodeID"])).remote(self.file(), name)
        try:
            await asyncio.wait_for(_answer(work), JOINED_S)
            return ""
        except (RayError, TimeoutError) as error:
            late = f"its sandbox node did not answer within {JOINED_S:g} s"
            said = f"{name} ({node['NodeManagerAddress']}): {late if isinstance(error, TimeoutError) else why(error)}"
            _log.warning("no sandboxes on %s", said)
            return said


def _member(node: dict[str, Any]) -> Member:
    has = node["Resources"]
    return Member(
        name=f"{node['NodeManagerHostname']}-{node['NodeID'][:8]}",
        cpus=has.get("CPU", 0.0),
        memory=has.get("memory", 0.0),
        gpus=has.get("GPU", 0.0),
        head=_HEAD in has,
    )


async def _answer(reference: Any) -> Any:
    return await reference


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


_JOIN: Any = ray.remote(num_cpus=0, max_retries=0)(fabric.join)
_LEAVE: Any = ray.remote(num_cpus=0, max_retries=0)(fabric.leave)
_KEEPER: Any = ray.remote(Keeper)


def sandboxes() -> Sandboxes:
    """The sandboxes of this cluster; hub and nodes are started where they are not there.

    Called in the cluster. HostError where no node can run sandboxes.
    """
    head = next((n["NodeID"] for n in ray.nodes() if n["Alive"] and _HEAD in n["Resources"]), None)
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
        raise HostError(f"the hub of this cluster's sandboxes does not answer: {why(error)}") from None
    without = sorted(filter(None, said.values()))
    if len(without) == len(said):
        raise HostError(
            f"no node of this cluster can run sandboxes: {'; '.join(without)}; rockroll doctor --ray looks at each"
        )
    name = ray.get_runtime_context().gcs_address.replace(":", "-").replace("[", "").replace("]", "")
    return Sandboxes(fabric.write(file, fabric.folder() / f"ray-{name}.json"), len(said), without)


def want(who: str, waits: Waits) -> None:
    """Tells what somebody waits for, where sandboxes have a keeper; again within WANTED_S as long as that holds."""
    with contextlib.suppress(ValueError):
        ray.get_actor(NAME, NAMESPACE).want.remote(who, waits)


def end() -> None:
    """Sandboxes' nodes leave, the hub ends. Nothing happens where there is none."""
    try:
        keeper = ray.get_actor(NAME, NAMESPACE)
    except ValueError:
        return
    ray.get(keeper.end.remote(), timeout=60)
    ray.kill(keeper)
