"""The node's sandboxes: every method of wire/.

In: rpc calls. Out: their replies; here the methods that make, find and end boxes. Leaves the making to maker.py, owners
and times to ends.py, an earlier node's boxes to takeover.py, what is done with a box to box_methods.py,
file_methods.py and network_methods.py, and models to the hooks that the node passes in.

A node that starts takes over what a dead one left: init and files live on, sessions come back on next use. How each box
ended stays in the registry.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import os
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from socket import socket as Socket
from typing import Any

from rockroll import home, rpc
from rockroll.errors import SandboxNotFound
from rockroll.sandbox import wire
from rockroll.sandbox.boxes.box import Box
from rockroll.sandbox.boxes.calls import Calls, counted
from rockroll.sandbox.boxes.lifecycle import story
from rockroll.sandbox.boxes.registry import Registry, Row
from rockroll.sandbox.boxes.snapshot import Snapshots
from rockroll.sandbox.config import config_of
from rockroll.sandbox.container import runtime
from rockroll.sandbox.container.oci_exec import Runtime
from rockroll.sandbox.container.podman import Podman, PodmanService
from rockroll.sandbox.container.profile import first_id
from rockroll.sandbox.container.spawner import Spawner
from rockroll.sandbox.linux import netns
from rockroll.sandbox.linux.process import become_subreaper
from rockroll.sandbox.linux.reaper import Reaper
from rockroll.sandbox.net.endpoint import Endpoint
from rockroll.sandbox.net.resolve import Resolve
from rockroll.sandbox.node import node_config
from rockroll.sandbox.node.admission import Admission
from rockroll.sandbox.node.aimd import Aimd
from rockroll.sandbox.node.box_methods import BoxMethods
from rockroll.sandbox.node.bring import Bring
from rockroll.sandbox.node.ends import Ends
from rockroll.sandbox.node.file_methods import FileMethods
from rockroll.sandbox.node.maker import Maker, Wish
from rockroll.sandbox.node.network_methods import NetworkMethods
from rockroll.sandbox.node.pool_methods import PoolMethods
from rockroll.sandbox.node.summary import Summary
from rockroll.sandbox.node.takeover import take_over
from rockroll.sandbox.where import Hub

COUNTED = ("session.run", "execute")
"""The box counts these itself, as it does those that no call is behind."""
_VERSION = importlib.metadata.version("rockroll")


class SandboxHost:
    """`await start()`, serve `handlers()` and `on_disconnect`, `await close()`.

    endpoint_port, on_endpoint: a socket listening on 127.0.0.1:port inside each box, handed over with the box's id
    before the box's first command and again after each restart. on_endpoint_gone: the box has ended, and may
    come back. on_removed: it will not. env: variables for a box that is being made, by its id. resolve: what addresses
    the hosts have that a box may reach; the host's own resolver where None. hub: of the cluster that this node is in.
    """

    def __init__(
        self,
        *,
        endpoint_port: int | None = None,
        on_endpoint: Callable[[str, Socket], Awaitable[None]] | None = None,
        on_endpoint_gone: Callable[[str], None] | None = None,
        on_removed: Callable[[str], None] | None = None,
        env: Callable[[str], Mapping[str, str]] | None = None,
        resolve: Resolve | None = None,
        hub: Callable[[], Hub | None] = lambda: None,
    ) -> None:
        self._endpoint = Endpoint(endpoint_port, on_endpoint, on_endpoint_gone)
        self._on_removed = on_removed or (lambda _: None)
        self._env = env or (lambda _: {})
        self._resolve = resolve
        self._hub = hub
        self._service = PodmanService(record=home.node_dir() / "podman.pid", revive=True)
        self._podman: Podman
        self._admission: Admission
        self._registry: Registry
        self._snapshots: Snapshots
        self._ends: Ends
        self._maker: Maker
        self._bring: Bring
        self._rootless = False
        self._boxes: dict[str, Box] = {}
        self._reaper = Reaper()
        self._spawner = Spawner()
        self._of_a_box = BoxMethods(self._box)
        self._files = FileMethods(self._box)
        self._pools = PoolMethods()
        self._network = NetworkMethods(self._box)

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """Method name → handler, for rpc.Server(types=wire.BODIES)."""
        handlers = {
            "sandbox.create": self._create,
            "sandbox.list": self._list,
            "sandbox.get": self._get,
            "sandbox.claim": self._claim,
            "sandbox.abandon": self._abandon,
            "sandbox.restore": self._restore,
            "sandbox.stop": self._stop,
            "sandbox.start": self._start,
            "sandbox.delete": self._delete,
            "sandbox.recycle": self._recycle,
            "sandbox.snapshot": self._snapshot,
            "sandbox.fork": self._fork,
            "snapshot.list": self._list_snapshots,
            "snapshot.delete": self._delete_snapshot,
            "snapshot.read": lambda body, peer: self._bring.give_snapshot(body, peer),
            "snapshot.bring": lambda body, peer: self._bring.bring_snapshot(body, peer),
            "image.write": lambda body, peer, parts: self._bring.take_image(body, peer, parts),
            "image.read": lambda body, peer: self._bring.give_image(body, peer),
            "node.info": self._info,
            "node.metrics": self._metrics,
            **self._pools.handlers(),
            **self._of_a_box.handlers(),
            **self._files.handlers(),
            **self._network.handlers(),
        }
        on_a_box = {name for name, body in wire.BODIES.items() if "id" in body.__struct_fields__}
        return {
            name: counted(handler, self._calls) if name in on_a_box and name not in COUNTED else handler
            for name, handler in handlers.items()
        }

    def _calls(self, body: Any) -> Calls:
        return self._box(body.id).calls

    # -- life of the host

    async def start(self) -> None:
        """Podman up, the leavings of an earlier node swept or adopted. Raises HostError with the cure."""
        _raise_file_limit()
        wanted = node_config.load(node_config.path()).starts
        detected = await asyncio.to_thread(runtime.detect)
        become_subreaper()  # after the probe, whose orphans nobody here would wait for
        self._rootless = detected.rootless
        environment = dict(detected.environment())
        oci = Runtime(
            detected.binary, detected.state_root, environment, detected.runtime, detected.store, detected.run_store
        )
        self._podman = await self._service.start()
        self._reaper.start()
        self._registry = Registry(home.node_dir() / "registry.sqlite")
        self._snapshots = Snapshots()
        self._admission = admission = Admission(
            Aimd(len(os.sched_getaffinity(0)), least=wanted.least, most=wanted.most)
        )
        self._bring = Bring(self._podman, self._snapshots, self._hub)
        self._ends = Ends(self._boxes, self._registry, admission, self._on_removed, lambda: self._maker.warm.room())
        self._maker = Maker(
            self._boxes,
            self._registry,
            self._ends,
            admission,
            self._podman,
            oci,
            self._spawner,
            self._snapshots,
            self._endpoint,
            self._env,
            self._resolve,
            Path(detected.store),
            detected.rootless,
            self._bring,
        )
        await take_over(self._boxes, self._registry, self._podman, self._maker, self._ends, admission)
        await self._snapshots.sweep()
        self._pools.fill(self._maker)

    def next_end(self) -> float | None:
        """Unix time at which the first of the boxes that outlive this node must go; None for never."""
        now = time.time()
        detached = [box for box in self._boxes.values() if box.owner == "detached"]
        ends = [box.created + box.config.ttl_s for box in detached if box.config.ttl_s is not None]
        ends += [now + box.config.idle_ttl_s for box in detached if box.config.idle_ttl_s is not None]
        return min(ends, default=None)

    async def close(self) -> None:
        """Connection boxes are deleted, detached ones left running for the next node. Raises where a box could not be
        removed: then there is something left for a next node to do."""
        pools = await asyncio.gather(self._maker.warm.close(), self._bring.close(), return_exceptions=True)
        await self._ends.close()
        boxes = list(self._boxes.values())
        done = await asyncio.gather(
            *(self._ends.remove(box, "node_lost") if box.owner == "connection" else box.life.leave() for box in boxes),
            return_exceptions=True,
        )
        self._reaper.close()
        self._files.close()
        self._spawner.close()
        await self._service.close()
        self._registry.close()
        become_subreaper(False)  # nobody here waits for orphans any more
        for error in (*pools, *done):
            if isinstance(error, BaseException):
                raise error

    async def on_disconnect(self, peer: rpc.Peer) -> None:
        """The owner of connection boxes is gone: so are they."""
        self._maker.warm.owner_gone(peer.id)
        await self._ends.disconnected(peer)

    # -- for the hub of a cluster

    def summary(self) -> Summary:
        """What it is told of this node."""
        return Summary(self._boxes, self._maker, self._admission, self._registry, self._podman)

    # -- finding boxes

    def count(self) -> int:
        """Sandboxes there are, running or not, or being made; those of warm pools too."""
        return len(self._boxes) + self._maker.warm.count

    def resolve(self, id: str) -> str:
        """The full id of an id, a unique prefix of one, or a name. Raises SandboxNotFound."""
        return self._box(id).id

    def listen(self, id: str, port: int) -> Socket:
        """A further socket, listening on 127.0.0.1:port inside a running box; the caller's to close. A restart of the
        box ends it. Raises as netns.listen_in does."""
        return netns.listen_in(self._box(id).init, port)

    def _box(self, id: str) -> Box:
        box = self._boxes.get(id) or self._find(id)
        box.calls.last = time.monotonic()
        return box

    def _find(self, id: str) -> Box:
        named = [box for box in self._boxes.values() if box.name == id]
        matching = named or [box for box in self._boxes.values() if id and box.id.startswith(id)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise SandboxNotFound(f"{id!r} begins the ids of {len(matching)} sandboxes; give more of it")
        if box := self._boxes.get(self._registry.keyed(id) or ""):
            return box
        if id and (row := self._registry.last_gone(id)):
            raise SandboxNotFound(
                f"sandbox {id!r} is gone; {story(row.cause, row.ended)}; `rockroll sandbox ls --all` lists what was",
                cause=row.cause,
                ended=row.ended,
            )
        raise SandboxNotFound(f"no sandbox {id!r}; `rockroll sandbox ls` lists those there are")

    async def _list(self, body: wire.List, _peer: rpc.Peer) -> list[wire.SandboxInfo]:
        found = [box.info() for box in self._boxes.values()]
        if body.all or body.state == "gone":
            found += [_gone(row) for row in self._registry.gone()]
        return [
            info for info in found if body.labels.items() <= info.labels.items() and body.state in (None, info.state)
        ]

    async def _get(self, body: wire.Ref, _peer: rpc.Peer) -> wire.SandboxInfo:
        return self._box(body.id).info()

    # -- making and ending boxes

    async def _create(self, body: wire.Create, peer: rpc.Peer) -> wire.SandboxInfo:
        return (await self._maker.create(Wish(config_of(body.config), body.owner, body.key, peer))).info()

    async def _fork(self, body: wire.Fork, peer: rpc.Peer) -> wire.SandboxInfo:
        return (await self._maker.fork(self._box(body.id), body, peer)).info()

    async def _claim(self, body: wire.Ref, peer: rpc.Peer) -> wire.SandboxInfo:
        box = self._box(body.id)
        self._ends.claim(box, peer)
        return box.info()

    async def _abandon(self, body: wire.Ref, _peer: rpc.Peer) -> wire.SandboxInfo:
        box = self._box(body.id)
        await asyncio.shield(self._ends.remove(box, "owner_gone"))
        return box.info()

    async def _restore(self, body: wire.Restore, _peer: rpc.Peer) -> wire.Restored:
        box = self._box(body.id)
        cause, sessions, lost = await box.life.restore(restart=body.restart)
        return wire.Restored(info=box.info(), cause=cause, sessions=sessions, lost=lost)

    async def _stop(self, body: wire.Ref, _peer: rpc.Peer) -> wire.SandboxInfo:
        box = self._box(body.id)
        await box.life.stop()
        return box.info()

    async def _start(self, body: wire.Ref, _peer: rpc.Peer) -> wire.SandboxInfo:
        box = self._box(body.id)
        await box.life.start()
        return box.info()

    async def _delete(self, body: wire.Ref, _peer: rpc.Peer) -> wire.SandboxInfo:
        box = self._box(body.id)
        await asyncio.shield(self._ends.remove(box))
        return box.info()

    async def _recycle(self, body: wire.Ref, _peer: rpc.Peer) -> wire.Recycled:
        box = self._box(body.id)
        try:
            reason = await box.recycle(lambda: self._files.quiet(box.id))
        except BaseException:
            self._ends.spawn(self._ends.remove(box))
            raise
        if reason is None:
            return wire.Recycled(ok=True)
        await self._ends.remove(box)
        return wire.Recycled(ok=False, reason=reason)

    # -- snapshots

    async def _snapshot(self, body: wire.Snapshot, _peer: rpc.Peer) -> wire.SnapshotInfo:
        box = self._box(body.id)
        info = wire.SnapshotInfo(
            name=body.name,
            image=box.config.image_name,
            image_id=await box.image_id(),
            created=time.time(),
            sandbox=box.id,
            config=dataclasses.asdict(box.config),
            first_id=first_id(box.config),
        )
        return await self._snapshots.take(info, box.copy_files)

    async def _list_snapshots(self, _body: wire.Empty, _peer: rpc.Peer) -> list[wire.SnapshotInfo]:
        return self._snapshots.all()

    async def _delete_snapshot(self, body: wire.SnapshotRef, _peer: rpc.Peer) -> wire.SnapshotInfo:
        return await self._snapshots.delete(body.name)

    async def _info(self, _body: wire.Empty, _peer: rpc.Peer) -> wire.NodeInfo:
        return wire.NodeInfo(
            node=home.node_name(),
            pid=os.getpid(),
            version=_VERSION,
            sandboxes=len(self._boxes),
            rootless=self._rootless,
        )

    async def _metrics(self, _body: wire.Empty, _peer: rpc.Peer) -> wire.NodeMetrics:
        return wire.NodeMetrics(
            node=os.uname().nodename,
            sandboxes=dict(Counter(box.state for box in self._boxes.values())),
            limit=self._admission.limit,
            running=self._admission.running,
            waiting=self._admission.waiting(),
            took=self._admission.measured.shown(),
        )


def _gone(row: Row) -> wire.SandboxInfo:
    """A sandbox that is gone."""
    config = config_of(row.config)
    return wire.SandboxInfo(
        id=row.id,
        name=row.name,
        state="gone",
        image=config.image_name,
        node=home.node_name(),
        created=row.created,
        owner=row.owner,
        labels=dict(config.labels),
        cause=row.cause,
        ended=row.ended,
    )


def _raise_file_limit() -> None:
    """A session holds about nine descriptors; the usual soft limit of 1,024 ends at a hundred of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
