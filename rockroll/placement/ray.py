"""The processes of one run, on the nodes of a Ray cluster. With on_ray/keeper.py the only file that imports ray.

In: what each process needs, and the address of a cluster. Out: `Places`, with the surface of local.Processes: room
reserved by a placement group, one actor a process, which holds it on its node (on_ray/host.py). Ray carries no data:
keys go out with the actors, all else over rockroll's own links. Leaves what a process does to its module, which node it
gets to needs.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rockroll import rpc, units
from rockroll.errors import HostError, ProcessDied, UsageError
from rockroll.placement.local import Place, Processes
from rockroll.placement.needs import Fit, Needs, Room, fit
from rockroll.placement.on_ray import far
from rockroll.placement.on_ray.demand import Waits
from rockroll.placement.on_ray.examine import NodeReport, examine
from rockroll.placement.on_ray.host import Host, versions
from rockroll.placement.on_ray.why import why
from rockroll.placement.usage import Usage
from rockroll.rpc import keys

try:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody about what is run
    import ray
    from ray.exceptions import RayError
    from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
except ImportError:
    raise UsageError("--ray needs Ray, on every node: pip install 'rockroll[ray]'") from None

RESERVED_S = 30.0
"""From asking for room that is free to having it; then somebody else was faster."""
STARTED_S = 60.0
"""An actor's process takes seconds to start on a busy node."""
EXAMINED_S = 60.0
REGROUP_S = 60.0
"""An engine that waits for room while no other is there gives up after this: by then a lost one would be back."""
NODES_WITHIN = "ROCKROLL_NODES_WITHIN"
"""Seconds in which nodes may come that a run needs and the cluster does not have yet; unset: none."""
_NODE_ID = "ray.io/node-id"
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


def rooms() -> list[Room]:
    """What every node has left that is alive, and is not asked to go."""
    leaving = ray._private.state.state.get_draining_nodes()  # pyright: ignore
    free: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()  # pyright: ignore
    mine = ray.get_runtime_context().get_node_id()
    return [
        Room(
            node=node["NodeID"],
            name=node["NodeManagerAddress"],
            cpus=has.get("CPU", 0.0),
            gpus=has.get("GPU", 0.0),
            memory=int(has.get("memory", 0)),
            here=node["NodeID"] == mine,
        )
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving and (has := free.get(node["NodeID"])) is not None
    ]


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """In the cluster for as long as this lasts."""
    mine = connect(address)
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def planned(address: str, needs: Callable[[float], Mapping[str, Needs]]) -> Fit:
    """Where a run's processes would go now. Starts nothing. needs: by the number of GPUs that the cluster has."""
    with joined(address):
        return fit(needs(ray.cluster_resources().get("GPU", 0.0)), rooms())


def examined(address: str) -> list[NodeReport]:
    """Every node that is alive, looked at from there, all at once."""
    with joined(address):
        asked = {
            room: _EXAMINE.options(scheduling_strategy=_exactly(room.node)).remote(
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
        from rockroll.placement.on_ray import keeper

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
        from rockroll.placement.on_ray import keeper

        return keeper.sandboxes().file


def end_sandboxes(address: str) -> None:
    """The hub of the cluster ends, its nodes leave it, and end once they are idle."""
    with joined(address):
        from rockroll.placement.on_ray import keeper

        keeper.end()


def _examined(room: Room, answer: Any) -> NodeReport:
    try:
        return ray.get(answer, timeout=EXAMINED_S)
    except (RayError, TimeoutError) as error:
        what = f"rockroll does not run there: {why(error)}; install the same as here"
        return NodeReport(node=room.name, host="", has=str(room), wrong=[what], ok=False)


def _exactly(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


class HostActor:
    """A host (on_ray/host.py), on a thread of its own: an actor's own event loop is Ray's."""

    def __init__(self, run: str, key: bytes) -> None:
        self._spot: Future[far.Spot] = Future()
        ip = ray.util.get_node_ip_address()
        node = ray.get_runtime_context().get_node_id()
        threading.Thread(target=self._serve, args=(node, ip, run, key), daemon=True).start()

    def spot(self) -> far.Spot:
        return self._spot.result(30)

    def _serve(self, node: str, ip: str, run: str, key: bytes) -> None:
        async def serve() -> None:
            host = Host(ip, run, key)
            await host.start()
            self._spot.set_result(
                far.Spot(node, os.getpid(), ip, host.address, host.ports, str(host.folder), versions(), platform.node())
            )
            await host.over.wait()
            await host.close()
            if not host.left:
                os._exit(0)  # the driver is gone, and Ray may take long to notice

        asyncio.set_event_loop_policy(None)  # Ray has set uvloop's, which starts children on the main thread only
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(serve())
        except BaseException as error:  # noqa: BLE001 - the driver waits for it
            if not self._spot.done():
                self._spot.set_exception(HostError(f"no process can be held on node {ip}: {error}"))
                return


_HOST: Any = ray.remote(HostActor)
_EXAMINE: Any = ray.remote(num_cpus=0, max_retries=0)(examine)


class Places(Processes):
    """All processes of a run on a cluster. Use as `async with Places(log_dir, address)`."""

    explain_s = 5.0

    def __init__(self, log_dir: Path, address: str) -> None:
        self._joined = connect(address)
        super().__init__(log_dir)
        self._address = address
        self._run = f"{os.getpid()}-{os.urandom(4).hex()}"
        self.grows = nodes_within() > 0
        self.gpus = ray.cluster_resources().get("GPU", 0.0)
        self._node = ray.get_runtime_context().get_node_id()
        self._key = self.runtime / "rpc.key"
        keys.make(self._key)
        self._files = far.Files(ray.util.get_node_ip_address(), self._key, log_dir / "fetched")
        self._groups: list[PlacementGroup] = []
        self._bundles: dict[str, tuple[PlacementGroup, int]] = {}
        self._actors: list[Any] = []
        self._places: list[far.FarPlace] = []
        self._lost: dict[str, str] = {}
        """What of the run was lost with a node, and how; Ray takes some seconds longer to know."""
        self._gone: set[str] = set()
        """Nodes that were lost."""
        self._short: dict[str, Waits] = {}
        """Sandboxes that are waited for, by their kind."""
        self._saying: asyncio.TimerHandle | None = None
        self._headless = False
        self._head: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Places:
        await self._files.start()
        ip, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._head = asyncio.ensure_future(far.watch_port(ip.strip("[]"), int(port), self._head_gone))
        return self

    def _head_gone(self) -> None:
        self._headless = True
        self.fail(
            HostError(
                f"Ray's head, {ray.get_runtime_context().gcs_address}, is gone, and with it the cluster; start it "
                "again (ray start --head) and continue with --resume, there or on any other cluster"
            )
        )

    def usage(self) -> list[Usage]:
        found = [place.usage for place in self._places if place.ended is not None and not place.ended.done()]
        return [each for each in found if each is not None]

    def short_of(self, what: str, boxes: int, cpus: float, memory: int) -> None:
        self._short[what] = Waits(count=boxes, cpus=cpus, memory=memory)
        self._say_short()

    def _say_short(self) -> None:
        """Ray's autoscaler is to know of it (on_ray/scaling.py)."""
        from rockroll.placement.on_ray import keeper, scaling

        loop = asyncio.get_running_loop()
        for what, waits in self._short.items():
            loop.run_in_executor(None, keeper.want, f"{self._run} {what}", waits)
        self._short = {what: waits for what, waits in self._short.items() if waits.count}
        if self._saying is not None:
            self._saying.cancel()
        self._saying = loop.call_later(scaling.WANTED_S / 3, self._say_short) if self._short else None

    async def reserve(self, needs: Mapping[str, Needs]) -> None:
        """HostError, in one sentence, where the cluster has no room for all of them, and gets none in time."""
        if not needs:
            return
        found = fit(needs, [room for room in rooms() if room.node not in self._gone])
        patience = nodes_within()
        if found.missing and patience:
            _log.warning("%s; waits up to %g s for nodes", found.missing, patience)
            if await self._wait(needs, lambda: _sleep(patience)):
                return
            found = Fit(missing=f"after {patience:g} s of waiting for nodes, {found.missing}")
        if found.missing:
            before = "; ".join(self._lost[name] for name in needs if name in self._lost)
            said = f"{before}, and no other has room: " if before else f"--ray {self._address}: "
            cure = "" if patience else "; where nodes come when they are asked for, --nodes-within 10m waits for them"
            raise HostError(f"{said}{found.missing} (rockroll plan RECIPE --ray shows it all{cure})")
        order = list(needs)
        group = placement_group(
            [_bundle(needs[name]) for name in order],
            strategy="PACK",
            bundle_label_selector=[{_NODE_ID: found.places[name].node} for name in order],
        )
        self._groups.append(group)
        if not await asyncio.to_thread(group.wait, RESERVED_S):
            raise HostError(
                f"--ray {self._address}: the room for {', '.join(order)} was free, and was not given within "
                f"{RESERVED_S:g} s: others may have taken it; begin again"
            )
        self._have(group, order)

    def _have(self, group: PlacementGroup, order: Sequence[str]) -> None:
        self._bundles |= {name: (group, index) for index, name in enumerate(order)}

    async def _wait(self, needs: Mapping[str, Needs], over: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Room for these, which there is none for now; whether it came before `over` did. Meanwhile it is a pending
        placement group, which is what Ray's autoscaler starts nodes for."""
        order = list(needs)
        apart = [{_NODE_ID: f"!in({','.join(sorted(self._gone))})"}] * len(order) if self._gone else None
        bundles = [_bundle(needs[name]) for name in order]
        group = placement_group(bundles, strategy="PACK", bundle_label_selector=apart)  # pyright: ignore
        self._groups.append(group)
        ready, waited = asyncio.ensure_future(_awaited(group.ready())), asyncio.ensure_future(over())
        came = False
        try:
            await asyncio.wait([ready, waited], return_when=asyncio.FIRST_COMPLETED)
            came = ready.done() and ready.exception() is None
        finally:
            waited.cancel()
            ready.cancel()
            await asyncio.gather(ready, waited, return_exceptions=True)
            if not came:
                self._groups.remove(group)
                remove_placement_group(group)
        if came:
            self._have(group, order)
        return came

    async def _again(self, name: str, needs: Needs) -> None:
        """Another room for a process that was lost. HostError where there is none, and none comes: an engine waits for
        it as long as the run goes on with others."""
        try:
            await self.reserve({name: needs})
        except HostError as error:
            if not self._others(name):
                raise
            _log.warning("%s waits for a node: %s", name, error)

            async def alone() -> None:
                while others := self._others(name):
                    await asyncio.wait(others)
                    if not self._others(name):
                        await asyncio.sleep(REGROUP_S)  # others that were lost with this one may be on their way back

            if not await self._wait({name: needs}, alone):
                raise

    def _others(self, name: str) -> list[asyncio.Task[None]]:
        """The ends, not yet come, of the processes that are what this one is."""
        kind = name.rpartition("-")[0]
        ends = [place.ended for place in self._places if place.name != name and place.name.rpartition("-")[0] == kind]
        return [end for end in ends if end is not None and not end.done()]

    def lost(self, place: far.FarPlace, error: ProcessDied) -> None:
        """Its node is not to be counted on any more."""
        self._lost[place.name] = error.message.splitlines()[0].partition("; ")[0]
        self._gone.add(place.spot.node)

    async def place(self, name: str, needs: Needs, attempt: int = 0) -> Place:
        if attempt or name not in self._bundles:
            old = self._bundles.pop(name, None)
            if old is not None and not any(group is old[0] for group, _ in self._bundles.values()):
                remove_placement_group(old[0])
            await (self._again(name, needs) if attempt else self.reserve({name: needs}))
        group, index = self._bundles[name]
        actor = _HOST.options(
            max_restarts=0,
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory or None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        ).remote(self._run, self._key.read_bytes())
        self._actors.append(actor)
        try:
            spot: far.Spot = await asyncio.wait_for(_awaited(actor.spot.remote()), STARTED_S)
        except (RayError, TimeoutError) as error:
            raise HostError(
                f"{name} has no process on Ray: {why(error)}; rockroll doctor --ray looks at each node"
            ) from error
        if wrong := far.check_versions(spot, versions()):
            raise HostError(wrong)
        here = self.address(f"{name}.{attempt}" if attempt else name) if spot.node == self._node else ""
        link = await rpc.connect(spot.address, self._key)
        log = self._log_dir / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        place = far.FarPlace(self, name, spot, link, self._files, log, here=here, on_lost=self.lost)
        self._places.append(place)
        return place

    async def __aexit__(self, *exc: Any) -> None:
        if self._head is not None:
            self._head.cancel()
        if self._saying is not None:
            self._saying.cancel()
        await asyncio.gather(*(place.leave() for place in self._places))
        await self._files.close()
        await super().__aexit__(*exc)
        if self._headless:
            return  # nothing more is asked of Ray: its calls would wait a minute for the head, then abort this process
        for actor in self._actors:
            ray.kill(actor)
        for group in self._groups:
            remove_placement_group(group)
        if self._joined:
            await asyncio.to_thread(ray.shutdown)


def nodes_within() -> float:
    """As NODES_WITHIN says; UsageError where it is no time."""
    said = os.environ.get(NODES_WITHIN, "")
    try:
        return units.seconds(said) if said else 0.0
    except ValueError as error:
        raise UsageError(f"--nodes-within: {error}") from None


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def _awaited(reference: Any) -> Any:
    return await reference


def _bundle(needs: Needs) -> dict[str, float]:
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": float(needs.memory)}
    return {name: amount for name, amount in wanted.items() if amount}
