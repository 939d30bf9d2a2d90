"""Being in a Ray cluster: first of all that imports ray, and says what to do where it is not installed.

In: a cluster's address. Out: this process in it, for as long as it wants; the nodes with what they have left. Leaves
what is asked of them to the others of this folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from rockroll import units
from rockroll.errors import HostError, UsageError
from rockroll.placement.needs import Fit, Needs, Room, fit
from rockroll.placement.on_ray.why import why

try:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody about what is run
    import ray
except ImportError:
    raise UsageError("--ray needs Ray, on every node: pip install 'rockroll[ray]'") from None

NODES_WITHIN = "ROCKROLL_NODES_WITHIN"
"""Seconds in which nodes may come that a run needs and the cluster does not have yet; unset: none."""
SETTLES_S = 5.0
"""By when Ray shows as free what a process that has ended held: within 0.1 s, later on a busy head."""
_log = logging.getLogger(__name__)


def connect(address: str) -> bool:
    """Joins the cluster; whether this call did. UsageError, HostError where it cannot be joined."""
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray {address}: a run's processes talk to this one, which Ray's client port does not carry; "
            "start rockroll on a node of the cluster, with --ray auto"
        )
    if ray.is_initialized():
        return False
    try:
        if ":" in address:  # Ray itself asks for two minutes, with words of its own
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        before = signal.getsignal(signal.SIGTERM)
        ray.init(address=address, namespace="rockroll", log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own would end this process without its clearing up
    except (OSError, RuntimeError, ValueError) as error:
        raise HostError(
            f"--ray {address}: no cluster can be joined ({why(error)}); start one with ray start --head, on other "
            "nodes ray start --address HEAD:6379, and name auto"
        ) from None
    # what Ray has to say of nodes and workers that died is for the log: on the screen it is one sentence, of ours
    ray._private.worker.print_to_stdstream = _log_words  # pyright: ignore[reportAttributeAccessIssue]
    return True


def _log_words(said: dict[str, Any], **_: Any) -> None:
    _log.info("Ray: %s", " ".join(said.get("lines", [])))


def draining() -> set[str]:
    """Nodes that Ray drains, by their ids. Ray tells nobody of a drain: whoever wants to know has to look."""
    return set(ray._private.state.state.get_draining_nodes())  # pyright: ignore


def rooms(without: Collection[str] = ()) -> list[Room]:
    """What every node has left that is alive, is not asked to go, and is none of `without`."""
    free: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()  # pyright: ignore
    return [_room(node, free[node["NodeID"]]) for node in _nodes(without) if node["NodeID"] in free]


def _nodes(without: Collection[str]) -> list[dict[str, Any]]:
    leaving = {*draining(), *without}
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def _room(node: Mapping[str, Any], has: Mapping[str, float]) -> Room:
    return Room(
        node=node["NodeID"],
        name=node["NodeManagerAddress"],
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        memory=int(has.get("memory", 0)),
        here=node["NodeID"] == ray.get_runtime_context().get_node_id(),
    )


def fitting(needs: Mapping[str, Needs], without: Collection[str] = ()) -> Fit:
    """Where these go now, on other nodes than `without`. Blocks for SETTLES_S at most, and only where nodes that were
    empty would do: a run that begins as another ends finds the room that Ray is about to have back."""
    until = time.monotonic() + SETTLES_S
    while (found := fit(needs, rooms(without))).missing:
        whole = [_room(node, node["Resources"]) for node in _nodes(without)]
        if fit(needs, whole).missing or time.monotonic() > until:
            break
        time.sleep(0.1)  # Ray tells nobody of it
    return found


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """In the cluster for as long as this lasts."""
    mine = connect(address)
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def nodes_within() -> float:
    """As NODES_WITHIN says; UsageError where it is no time."""
    said = os.environ.get(NODES_WITHIN, "")
    try:
        return units.seconds(said) if said else 0.0
    except ValueError as error:
        raise UsageError(f"--nodes-within: {error}") from None
