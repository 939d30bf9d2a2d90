"""A Ray cluster that grows and shrinks under a run: what waits is shown as demand, what comes is used, what goes is
left."""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from rockroll import SandboxConfig
from rockroll.errors import HostError
from rockroll.placement.needs import Needs
from rockroll.sandbox import where
from rockroll.sandbox.node_client import close_node, connect_to
from rockroll.sandbox.pool import Pool
from tests.placement.conftest import Nodes
from tests.placement.test_ray import CHILD, Said

pytestmark = pytest.mark.slow
BOX = SandboxConfig()


def of_two_boxes(home: Path) -> None:
    """A node that may grant the memory of two boxes and a bit."""
    memory = 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    (home / "node.yaml").write_text(f"limits: {{memory_overcommit: {2.2 * BOX.memory_bytes / memory}}}")


def gcs(nodes: Nodes) -> Any:
    return importlib.import_module("ray._raylet").GcsClient(nodes.address)


def states(nodes: Nodes) -> dict[str, Any]:
    """What Ray tells its autoscaler of every node."""
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    return {state.node_id.hex(): state for state in get_cluster_resource_state(gcs(nodes)).node_states}


def pending(nodes: Nodes) -> list[dict[str, float]]:
    """Bundles of placement groups that have no place."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    groups = get_cluster_status(nodes.address).resource_demands.placement_group_demand
    return [each.bundle for group in groups for each in group.bundles_by_count if group.state == "PENDING"]


def requested() -> list[dict[str, float]]:
    """What the autoscaler is told to have in all."""
    from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL as CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    return json.loads(_internal_kv_get(CHANNEL) or b"[]")


async def until(what: Callable[[], bool], seconds: float = 60.0) -> float:
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "it did not come about in time"
        await asyncio.sleep(0.1)
    return time.monotonic() - began


@pytest.fixture
def nodes(make_nodes: Callable[[], Nodes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head, where this process is."""
    (tmp_path / "farchild.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    made = make_nodes()
    made.add(1, before=of_two_boxes)
    yield made
    made.close()


@pytest.fixture
def file(nodes: Nodes, sandbox_image: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The sandboxes of the head and another node, two boxes each."""
    from rockroll.placement.on_ray.joining import connect
    from rockroll.placement.ray import cluster_file

    nodes.add(1, before=of_two_boxes)
    connect(nodes.address)
    file = cluster_file(nodes.address)
    monkeypatch.setenv("ROCKROLL_CLUSTER", str(file))
    yield file
    nodes.end_sandboxes()


@pytest.mark.timeout(600)
async def test_boxes_that_wait_are_demand_a_new_node_takes_them_and_a_drained_one_goes_when_it_is_empty(
    nodes: Nodes, file: Path, tmp_path: Path
) -> None:

    from rockroll.placement.on_ray.joining import rooms
    from rockroll.placement.on_ray.places import Places

    ray_said: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    worker = nodes.nodes[1]
    async with Places(tmp_path / "logs", nodes.address) as places, Pool(BOX, 6) as pool:
        pool.on_short = lambda count: places.short_of("task", count, 1.0, BOX.memory_bytes)
        leases: list[tuple[AsyncExitStack, Any]] = []

        async def lease() -> None:
            stack = AsyncExitStack()
            leases.append((stack, await stack.enter_async_context(pool.lease())))

        await asyncio.gather(*(lease() for _ in range(4)))
        assert len({box.info.node for _, box in leases}) == 2
        waiting = [asyncio.ensure_future(lease()) for _ in range(2)]
        await until(lambda: len(requested()) == 3)
        assert not any(each.done() for each in waiting)

        # Ray does not take a node with boxes for idle
        await until(lambda: "Busy workers on node." in states(nodes)[worker.node_id].node_activity)
        taken, why = gcs(nodes).drain_node(worker.node_id, ray_said.DRAIN_NODE_REASON_IDLE_TERMINATION, "idle", 0)
        assert not taken and "no longer idle" in why

        await nodes.join(1, before=of_two_boxes)
        began = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*waiting), 120)
        print(f"a new node had the boxes that waited {time.monotonic() - began:.1f} s after Ray had it")
        assert len({box.info.node for _, box in leases}) == 3
        await until(lambda: requested() == [])

        # another node comes, and the worker is asked to go
        await nodes.join(1, before=of_two_boxes)
        deadline = int((time.time() + 600) * 1000)
        assert gcs(nodes).drain_node(worker.node_id, ray_said.DRAIN_NODE_REASON_PREEMPTION, "", deadline)[0]
        assert worker.node_id not in {room.node for room in rooms()}
        name = next(box.info.node for _, box in leases if worker.node_id[:8] in box.info.node)
        there = [each for each in leases if each[1].info.node == name]
        assert len(there) == 2
        hub: Any = await connect_to(where.hub())
        await until(lambda: any(view.name == name and view.state == "draining" for view in hub.nodes))
        for stack, box in there:
            assert (await box.arun("echo at work")).stdout == b"at work\n"
            assert states(nodes)[worker.node_id].status == ray_said.NodeStatus.DRAINING
            await stack.aclose()
        leases = [each for each in leases if each not in there]
        await asyncio.gather(*(lease() for _ in range(2)))
        assert name not in {box.info.node for _, box in leases}
        await until(lambda: states(nodes)[worker.node_id].status == ray_said.NodeStatus.DEAD)
        await asyncio.gather(*(stack.aclose() for stack, _ in leases))
    await close_node()


@pytest.mark.timeout(300)
async def test_an_engine_that_lost_its_node_is_demand_while_others_serve_and_gets_the_next_node(
    nodes: Nodes, tmp_path: Path
) -> None:
    from rockroll.placement.on_ray.places import Places

    first, second = nodes.add(2), nodes.add(2)
    async with Places(tmp_path / "logs", nodes.address) as places:
        needs = Needs(cpus=2)
        await places.reserve({"engine-0": needs, "engine-1": needs})
        at: dict[str, Any] = {name: await places.place(name, needs) for name in ("engine-0", "engine-1")}
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        for place in at.values():
            await place.start("farchild", Said(address=place.address, key=place.their_key), on_death=told.set_result)
        lost = next(node for node in (first, second) if node.node_id == at["engine-1"].spot.node)
        nodes.kill(lost)
        await told
        again = asyncio.ensure_future(places.place("engine-1", needs, 1))
        await until(lambda: pending(nodes) == [{"CPU": 2.0}])
        assert not again.done()
        new = await nodes.join(2)
        began = time.monotonic()
        place: Any = await asyncio.wait_for(again, 60)
        print(f"a new node had the engine {time.monotonic() - began:.1f} s after Ray had it")
        assert place.spot.node == new.node_id and pending(nodes) == []


@pytest.mark.timeout(300)
async def test_an_engine_leaves_a_node_that_ray_drains_once_there_is_room_and_a_trainer_stays(
    nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from rockroll.placement.on_ray.places import Places

    ray_said: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    drained = nodes.add(4)
    async with Places(tmp_path / "logs", nodes.address) as places:
        wants = dict.fromkeys(("engine-0", "trainer-0"), Needs(cpus=2))
        await places.reserve(wants)
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        at: dict[str, Any] = {name: await places.place(name, needs) for name, needs in wants.items()}
        for name, place in at.items():
            said = Said(address=place.address, key=place.their_key)
            await place.start("farchild", said, on_death=told.set_result if name == "engine-0" else None)
        deadline = int((time.time() + 600) * 1000)
        assert gcs(nodes).drain_node(drained.node_id, ray_said.DRAIN_NODE_REASON_PREEMPTION, "", deadline)[0]
        await until(lambda: "where engine-0 runs: it goes to another node once there is room" in caplog.text)
        assert not told.done()
        new = await nodes.join(2)
        error = await asyncio.wait_for(told, 60)
        assert error.fields["cause"] == "drained"
        moved: Any = await asyncio.wait_for(places.place("engine-0", wants["engine-0"], 1), 60)
        assert moved.spot.node == new.node_id
        assert "where trainer-0 runs: with it, the run ends" in caplog.text
        assert not at["trainer-0"].ended.done(), "who works there works on"


@pytest.mark.timeout(300)
async def test_a_run_that_does_not_fit_waits_for_nodes_where_it_is_told_to_and_leaves_no_demand(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rockroll.placement.on_ray.places import Places

    async with Places(tmp_path / "logs", nodes.address) as places:
        with pytest.raises(HostError, match="--nodes-within 10m waits for them"):
            await places.reserve({"trainer-0": Needs(cpus=2)})
        monkeypatch.setenv("ROCKROLL_NODES_WITHIN", "2s")
        with pytest.raises(HostError, match=r"after 2 s of waiting for nodes, trainer-0 .*needs 2 CPUs"):
            await places.reserve({"trainer-0": Needs(cpus=2)})
        await until(lambda: pending(nodes) == [])
        monkeypatch.setenv("ROCKROLL_NODES_WITHIN", "2m")
        waiting = asyncio.ensure_future(places.reserve({"trainer-0": Needs(cpus=2), "engine-0": Needs(cpus=1)}))
        await until(lambda: sorted(each["CPU"] for each in pending(nodes)) == [1.0, 2.0])
        await nodes.join(2)
        await asyncio.wait_for(waiting, 60)
        place: Any = await places.place("trainer-0", Needs(cpus=2))
        assert not place.here
