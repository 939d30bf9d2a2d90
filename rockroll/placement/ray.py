"""What rockroll asks of a Ray cluster as a whole. Ray is imported here and in on_ray/, by nobody else.

In: the address of a cluster. Out: where a run's processes would go, how each node is, the sandboxes of the cluster.
Leaves a run's processes to on_ray/places.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rockroll.placement.needs import Fit, Needs, Room
from rockroll.placement.on_ray.joining import fitting, joined, nodes_within, rooms  # first: says so without Ray

# isort: split
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rockroll.placement.on_ray import keeper
from rockroll.placement.on_ray.examine import NodeReport, examine
from rockroll.placement.on_ray.host import versions
from rockroll.placement.on_ray.why import why

EXAMINED_S = 60.0


def planned(address: str, needs: Callable[[float], Mapping[str, Needs]]) -> Fit:
    """Where a run's processes would go now. Starts nothing. needs: by the number of GPUs that the cluster has."""
    with joined(address):
        return fitting(needs(ray.cluster_resources().get("GPU", 0.0)))


def examined(address: str) -> list[NodeReport]:
    """Every node that is alive, looked at from there, all at once."""
    with joined(address):
        asked = {
            room: _EXAMINE.options(scheduling_strategy=NodeAffinitySchedulingStrategy(room.node, soft=False)).remote(
                room.name, str(room), versions(), time.time()
            )
            for room in rooms()
        }
        return [_examined(room, answer) for room, answer in asked.items()]


def sandboxes_of_run(address: str) -> tuple[Path | None, str]:
    """As `cluster_file`, for a run, and what is to be said of nodes that have no sandboxes, "" for nothing.

    No file where this machine is the whole cluster, and is to stay that: its own node needs no hub."""
    with joined(address):
        if all(room.here for room in rooms()) and not nodes_within():
            return None, ""
        found = keeper.sandboxes()
    if not found.without:
        return found.file, ""
    on = found.nodes - len(found.without)
    return found.file, (
        f"sandboxes are on {on} of {found.nodes} nodes; none on {'; none on '.join(found.without)}; it is asked again "
        "while the run goes on, and rockroll doctor --ray looks at each"
    )


def cluster_file(address: str) -> Path:
    """The file by which the sandboxes of the cluster are reached: for ROCKROLL_CLUSTER, `Sandbox(cluster=…)`, others.

    Hub and nodes are started where they are not there yet, and stay when this process has ended. Blocks for seconds at
    the first time. HostError where no node can run sandboxes.
    """
    with joined(address):
        return keeper.sandboxes().file


def end_sandboxes(address: str) -> None:
    """The hub of the cluster ends, its nodes leave it, and end once they are idle."""
    with joined(address):
        keeper.end()


def _examined(room: Room, answer: Any) -> NodeReport:
    try:
        return ray.get(answer, timeout=EXAMINED_S)
    except (RayError, TimeoutError) as error:
        what = f"rockroll does not run there: {why(error)}; install the same as here"
        return NodeReport(node=room.name, host="", has=str(room), wrong=[what], ok=False)


_EXAMINE: Any = ray.remote(num_cpus=0, max_retries=0)(examine)
