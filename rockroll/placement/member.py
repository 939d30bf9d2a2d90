"""This home's node as a member of a cluster: it dials out to the hub, and answers whoever calls it through that.

In: a cluster file, a name, the node's server and summary. Out: remote clients as peers of the server; boxes and load
told to the hub at each change; what clients that are gone owned, removed. Leaves the calls to the server.

    join ──► dialled ──► member ──┬─ the hub was started anew, or had forgotten it ──► joins again
                                  ├─ the hub is not heard for ALONE_S ──► remote owners count as gone
                                  └─ leave, or the node's end ──► the hub is told

A node that is started (by a client, by its warden) joins again by itself: member.json in its home says where.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from rockroll import home, rpc
from rockroll.errors import PeerLost, RockrollError, UsageError
from rockroll.release import VERSION
from rockroll.rpc.line import Line
from rockroll.rpc.trunk import HUB, Trunk
from rockroll.sandbox.cluster.file import ClusterFile
from rockroll.sandbox.cluster.wire import Join, Report, Told
from rockroll.sandbox.node.summary import Summary
from rockroll.sandbox.node_client import connect_node
from rockroll.sandbox.where import Hub
from rockroll.sandbox.wire import Empty, Struct

AGAIN_S = 1.0
"""Before the hub is asked again, where it refused or was not there."""
ALONE_S = 600.0
LOAD_S = 2.0
"""So often the hub is told how the host is, where that has changed and no box came or went."""
_log = logging.getLogger(__name__)


class Membership(Struct, frozen=True):
    """The body of `node.join`, and member.json."""

    hub: str
    server_key: str
    name: str


class Joined(Struct, frozen=True):
    name: str
    hub: str


def _path() -> Path:
    return home.node_dir() / "member.json"


def is_member() -> bool:
    """Whether this home's node is one, or will be once it is started."""
    return _path().exists()


class Member:
    """summary: once the host is up. idle: told when the node may have become idle. `joined`: the node is to stay
    for its cluster."""

    def __init__(self, server: rpc.Server, summary: Callable[[], Summary], idle: Callable[[], None]) -> None:
        self._server, self._summarise, self._idle = server, summary, idle
        self._summary: Summary
        self._wanted: Membership | None = None
        self._trunk: Trunk | None = None
        self._hub: rpc.Client | None = None
        self._clients: dict[bytes, rpc.Peer] = {}
        self._dirty: set[str] = set()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._alone: asyncio.TimerHandle | None = None

    @property
    def joined(self) -> bool:
        return self._wanted is not None

    @property
    def hub(self) -> Hub | None:
        """Of the cluster that this node is in."""
        return None if self._wanted is None else Hub(self._wanted.hub, self._wanted.server_key)

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """For this host's own clients."""
        return {"node.join": self._join, "node.leave": self._leave}

    def resume(self) -> None:
        """Joins where the node before this one was a member. Once the host is up."""
        self._summary = self._summarise()
        self._summary.follow(self._note)
        with contextlib.suppress(FileNotFoundError):
            said = msgspec.json.decode(_path().read_bytes(), type=Membership)
            self._begin(said, asyncio.get_running_loop().create_future())

    async def _join(self, body: Membership, peer: rpc.Peer) -> Joined:
        """Returns once the hub has this node; what the hub refuses is raised, and then it is no member."""
        _need_local(peer)
        await self._end()
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._begin(body, first)
        try:
            await first
        except BaseException:
            await self._end()
            raise
        draft = _path().with_suffix(".new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(body))
        draft.replace(_path())
        return Joined(name=body.name, hub=body.hub)

    async def _leave(self, _body: Empty, peer: rpc.Peer) -> None:
        _need_local(peer)
        _path().unlink(missing_ok=True)
        await self._end()
        self._idle()

    async def close(self) -> None:
        """The node ends; it will be a member again when it is started again."""
        await self._end()

    # -- being one

    def _begin(self, wanted: Membership, first: asyncio.Future[None]) -> None:
        self._wanted = wanted
        os.environ["ROCKROLL_NODE_NAME"] = wanted.name  # what every box says of its node (home.node_name)
        self._task = asyncio.ensure_future(self._stay(wanted, first))

    async def _end(self) -> None:
        task, self._task, self._wanted = self._task, None, None
        if task is None:
            return
        if self._hub is not None and self._trunk is not None and not self._trunk.silent:
            with contextlib.suppress(RockrollError, TimeoutError):
                await self._hub.call("node.leave", Empty(), timeout=2)
        task.cancel()
        await asyncio.wait((task,))
        if self._trunk is not None:
            self._trunk.close()
        self._trunk = self._hub = None
        if self._alone is not None:
            self._alone.cancel()
        self._drop(list(self._clients))

    async def _stay(self, wanted: Membership, first: asyncio.Future[None]) -> None:
        trunk = None
        while True:
            try:
                if trunk is None:
                    dialled = Trunk(
                        wanted.hub, wanted.server_key, on_line=self._line, on_silent=self._cut, on_back=self._back
                    )
                    await dialled.open()
                    trunk = self._trunk = dialled
                await self._member(trunk, wanted, first)
            except RockrollError as error:
                if not first.done():
                    first.set_exception(error)
                    return
                _log.warning("not in the cluster: %s", error)
            await asyncio.sleep(AGAIN_S)  # a hub that is away or that refuses says nothing when it would not

    async def _member(self, trunk: Trunk, wanted: Membership, first: asyncio.Future[None]) -> None:
        """Until the hub has lost this node."""
        line = trunk.line(HUB, lambda data: hub.hear(data), lambda: hub.fail(PeerLost("the hub was started anew")))
        hub = self._hub = rpc.Client.over("the hub", line, lambda: None)
        self._dirty.clear()
        cpus, memory, pids = self._summary.most()
        body = Join(
            name=wanted.name,
            version=VERSION,
            cpus=cpus,
            memory=memory,
            pids=pids,
            boxes=self._summary.rows(),
            images=await self._summary.images(),
            clients=list(self._clients),
            load=self._summary.load(),
        )
        reporting: asyncio.Task[None] | None = None
        try:
            async for told in hub.stream("node.join", body, type=Told):
                self._drop(told.gone)
                if reporting is None:
                    _log.info("joined the cluster of %s as %s", wanted.hub, wanted.name)
                    reporting = asyncio.ensure_future(self._report(hub))
                    if not first.done():
                        first.set_result(None)
        finally:
            if reporting is not None:
                reporting.cancel()
                await asyncio.wait((reporting,))

    def _note(self, id: str) -> None:
        self._dirty.add(id)
        self._changed.set()

    async def _report(self, hub: rpc.Client) -> None:
        """Tells the hub of what has changed, all that is new at a time; one report is under way at once."""
        said = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOAD_S):
                    await self._changed.wait()
            self._changed.clear()
            dirty, self._dirty = self._dirty, set()
            rows = {id: self._summary.row(id) for id in dirty}
            load = self._summary.load()
            images = await self._new_images()
            if not rows and load == said and images is None:
                continue
            said = load
            body = Report(
                put=[row for row in rows.values() if row is not None],
                gone=[id for id, row in rows.items() if row is None],
                load=load,
                images=images,
            )
            try:
                await hub.call("node.report", body)
            except RockrollError as error:
                hub.fail(PeerLost(f"the hub took no report: {error}"))  # it is joined anew, and told everything
                return

    async def _new_images(self) -> list[str] | None:
        if not self._summary.images_changed():
            return None
        try:
            return await self._summary.images()
        except RockrollError as error:
            _log.warning("which images there are could not be told to the hub: %s", error)
            return None

    # -- remote clients

    def _line(self, trunk: bytes, line: Line) -> None:
        peer = self._clients[trunk] = self._server.join(trunk.hex(), line)
        line.on_frame = lambda data: self._server.hear(peer, data)
        line.on_ended = lambda: self._server.hush(peer)

    def _drop(self, clients: list[bytes]) -> None:
        """They are gone, and what they own goes."""
        for trunk in clients:
            if (peer := self._clients.pop(trunk, None)) is not None:
                self._server.leave(peer)
                if self._trunk is not None:
                    self._trunk.end(trunk)

    def _cut(self) -> None:
        _log.warning("the hub is not heard any more")
        loop = asyncio.get_running_loop()
        self._alone = loop.call_later(ALONE_S, lambda: self._drop(list(self._clients)))

    def _back(self) -> None:
        _log.info("the hub is heard again")
        if self._alone is not None:
            self._alone.cancel()


def _need_local(peer: rpc.Peer) -> None:
    if peer.pid is None:
        raise UsageError("only this host itself says which cluster its node is in; run `rockroll node` there")


async def join(file: Path, name: str | None = None) -> Joined:
    """Makes this home's node a member, started where none runs. name: unique in the cluster; the host's where None.

    HostError, UsageError: what the hub refuses (another version, a name that is taken). PeerLost where no hub answers.
    """
    said = ClusterFile.read(file)
    name = name or os.uname().nodename
    if not name.isprintable() or len(name) > 128:
        raise UsageError(f"name: at most 128 printable characters; got {name!r}")
    node = await connect_node()
    body = Membership(hub=said.hub, server_key=said.server_key, name=name)
    return await node.call("node.join", body, type=Joined)


async def leave() -> None:
    """This home's node is no member any more; its boxes stay."""
    await (await connect_node()).call("node.leave", Empty())
