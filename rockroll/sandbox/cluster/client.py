"""A cluster as its clients see it: `call`, `stream` and `closed` as of rpc.Client, and each node's own rpc.Client.

In: methods of sandbox/wire/. Out: the replies of the node that holds the box, or of all of them put together. Leaves
where a box is placed to the hub; the calls themselves go to the node, through the hub, unread.

    hub not heard for SILENT_S, or a node suspect  ──► every call under way there raises PeerLost, that node's client is
    closed; the next call opens another, which the node answers as soon as it is heard again
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from rockroll import rpc
from rockroll.errors import (
    HostError,
    PeerLost,
    RockrollError,
    SandboxNotFound,
    SnapshotNotFound,
    UsageError,
)
from rockroll.rpc.trunk import HUB, Trunk
from rockroll.sandbox import wire
from rockroll.sandbox.cluster import merge, snapshots
from rockroll.sandbox.cluster.wire import Drain, ImageSource, ImageWant, NodeView, Placed, Settle, Want, Where
from rockroll.sandbox.config import SandboxConfig, config_of, kind

AGAIN_S = 0.5
"""Before the hub is asked again for its nodes, where it refused."""
REJOIN_S = 4.0
"""A node whose hub was started anew has joined it again by then."""
GIVE_UP_S = 60.0
BYE_S = 2.0


class HubNode:
    """Made by `connect_hub`; belongs to one event loop. What it makes with owner "connection" goes when it is closed,
    or when the hub has not heard this process for 45 s."""

    def __init__(self, address: str, server_key: str) -> None:
        self.address = address
        self.closed: RockrollError | None = None
        self.on_lost: Callable[[], None] | None = None
        """Told when the hub has not been heard for GIVE_UP_S."""
        self._trunk = Trunk(address, server_key, on_silent=self._silent, on_back=self._back)
        self._hub: rpc.Client
        self._views: dict[str, NodeView] = {}
        self._clients: dict[str, rpc.Client] = {}
        self._known = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._notes: set[asyncio.Task[Any]] = set()
        self._later: dict[str, set[str]] = {}
        """Node → boxes to delete there once it is heard."""
        self._given_up: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """PeerLost where no hub answers."""
        await self._trunk.open()
        self._hub = self._dial()
        self._watching = asyncio.ensure_future(self._watch())
        await self._known.wait()

    @property
    def nodes(self) -> list[NodeView]:
        """Every node, as the hub has last told of its state; `refresh` asks for numbers."""
        return list(self._views.values())

    async def refresh(self) -> list[NodeView]:
        return await self._ask("cluster.nodes", wire.Empty(), list[NodeView])

    async def drain(self, node: str, on: bool = True) -> None:
        """Nothing more is placed there (or again); what is there stays."""
        await self._ask("cluster.drain", Drain(node=node, on=on))

    def image_source(self, want: ImageWant) -> AsyncGenerator[ImageSource, None]:
        """For a node that lacks an image: from whom to copy it, when that one is free. It is held open meanwhile."""
        return self._hub.stream("image.source", want, type=ImageSource)

    async def image_got(self, want: ImageWant) -> None:
        """That node has it now, and may give it to others."""
        await self._ask("image.got", want)

    # -- the hub and the nodes

    def _dial(self) -> rpc.Client:
        def ended() -> None:
            if self._hub is made:
                self._hub = self._dial()
            made.fail(PeerLost(f"the hub at {self.address} was started anew"))

        line = self._trunk.line(HUB, lambda data: made.hear(data), ended)
        made = rpc.Client.over(f"the hub at {self.address}", line, lambda: None)
        return made

    async def _watch(self) -> None:
        while True:
            try:
                async for views in self._hub.stream("cluster.watch", wire.Empty(), type=list[NodeView]):
                    self._seen(views)
                    self._known.set()
            except RockrollError:
                await asyncio.sleep(AGAIN_S)  # a hub that has just been started; the loop's only way to ask again

    def _seen(self, views: Sequence[NodeView]) -> None:
        self._views = {view.name: view for view in views}
        for name, client in tuple(self._clients.items()):
            view = self._views.get(name)
            if view is None:  # it has left; or the hub was started anew, and the node has not told it yet
                asyncio.get_running_loop().call_later(REJOIN_S, self._lose_if_gone, name, client)
            elif view.state == "suspect" or client.address != _label(view):
                self._lose(name, f"node {name} of the cluster is not heard any more")
        for name in [name for name in self._later if name in self._views and self._views[name].state != "suspect"]:
            for id in self._later.pop(name):
                self._note(self._delete(name, id))

    async def _delete(self, name: str, id: str) -> None:
        client = await self.at(name)
        try:
            await client.call("sandbox.delete", wire.Ref(id=id), type=wire.SandboxInfo)
        except PeerLost:
            self._later.setdefault(name, set()).add(id)

    def _lose_if_gone(self, name: str, client: rpc.Client) -> None:
        if name not in self._views and self._clients.get(name) is client:
            self._lose(name, f"node {name} has left the cluster")

    def _lose(self, name: str, why: str) -> None:
        client = self._clients.pop(name)
        client.fail(PeerLost(why))
        client.detach()

    async def _ask(self, method: str, body: Any, type: Any = Any) -> Any:
        """The hub's answer. Asked once more where the hub was started anew meanwhile: all that it is asked may be."""
        for again in (True, False):
            if self.closed is not None:
                raise self.closed
            if self._trunk.silent:
                raise PeerLost(f"the hub at {self.address} has not been heard for {self._trunk.silence:.1f} s")
            try:
                return await self._hub.call(method, body, type=type)
            except PeerLost:
                if not again:
                    raise
        return None

    def _silent(self) -> None:
        why = f"the hub at {self.address} has not been heard for {self._trunk.silence:.1f} s"
        for name in tuple(self._clients):
            self._lose(name, why)
        hub, self._hub = self._hub, self._dial()
        hub.fail(PeerLost(why))
        self._given_up = asyncio.get_running_loop().call_later(GIVE_UP_S, lambda: self.on_lost and self.on_lost())

    def _back(self) -> None:
        if self._given_up is not None:
            self._given_up.cancel()

    def delete_later(self, node: str, id: str) -> None:
        """Deletes a box of a node that is not heard now, as soon as it is."""
        self._later.setdefault(node, set()).add(id)
        self._seen(self.nodes)

    async def at(self, name: str) -> rpc.Client:
        """The client of one node. PeerLost where it is not there or not heard."""
        if self.closed is not None:
            raise self.closed
        if self._trunk.silent:
            raise PeerLost(f"the hub at {self.address} has not been heard for {self._trunk.silence:.1f} s")
        client = self._clients.get(name)
        if client is None or client.closed is not None:
            view = self._views.get(name)
            if view is None or view.state == "suspect":
                raise PeerLost(f"node {name} of the cluster is {'not heard' if view else 'gone'}")
            client = self._clients[name] = self._to(view)
        return client

    def _to(self, view: NodeView) -> rpc.Client:
        def ended() -> None:
            if self._clients.get(view.name) is made:
                self._lose(view.name, f"node {view.name} has given this process up")

        line = self._trunk.line(view.trunk, lambda data: made.hear(data), ended)
        made = rpc.Client.over(_label(view), line, line.close)
        return made

    async def _placed(self, at: Placed) -> rpc.Client:
        """The client of a node that the hub has named, which may be newer than what was seen of it."""
        view = self._views.get(at.node)
        if view is None or view.trunk != at.trunk or view.state == "suspect":
            self._seen(await self.refresh())
        return await self.at(at.node)

    def _up(self) -> list[str]:
        return [view.name for view in self._views.values() if view.state != "suspect"]

    # -- calls

    async def call(
        self,
        method: str,
        body: Any = None,
        *,
        type: Any = Any,
        parts: AsyncIterator[Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """As rpc.Client.call."""
        async with asyncio.timeout(timeout):
            if method == "sandbox.create":
                return await self.create(body)
            if method in snapshots.OF_CLUSTER:
                return await snapshots.OF_CLUSTER[method](self, body)
            if method in merge.OF_ALL:
                return await merge.OF_ALL[method](self.each, method, body)
            if method in merge.OF_ONE:
                return await self._of_one(method, body, type)
            client = await self.holding(merge.id_of(method, body))
            return await client.call(method, body, type=type, parts=parts)

    async def stream(
        self, method: str, body: Any = None, *, type: Any = Any, parts: AsyncIterator[Any] | None = None
    ) -> AsyncGenerator[Any, None]:
        """As rpc.Client.stream."""
        client = await self.holding(merge.id_of(method, body))
        items = client.stream(method, body, type=type, parts=parts)
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()

    async def holding(self, id: str) -> rpc.Client:
        """The client of the node that holds a box: id, unique id prefix, name or key. SandboxNotFound tells how it
        ended, where a node knows."""
        try:
            return await self._placed(await self._ask("cluster.where", Where(id=id), Placed))
        except SandboxNotFound as error:
            said = error
        # The hub hears of a box a moment after its maker does; and how one ended, its node alone knows.
        body = wire.Ref(id=id)
        found = await self.each("sandbox.get", body, wire.SandboxInfo, keep=(SandboxNotFound, PeerLost))
        for name, answer in found.items():
            if isinstance(answer, wire.SandboxInfo):
                return await self.at(name)
            if isinstance(answer, SandboxNotFound) and answer.fields.get("cause"):
                said = answer
        raise said

    async def create(self, body: wire.Create, *, wait: bool = False, elsewhere: str | None = None) -> wire.SandboxInfo:
        """Makes a box on the node that the hub picks; where that one's host has no room after all, on another. A
        snapshot's files are copied to it, where no node that has them has room.

        wait: until a node has room. elsewhere: on any node but this. NoRoom, and what the node raised."""
        config = config_of(body.config)
        files = None if config.snapshot is None else (await snapshots.find(self, config.snapshot)).nodes
        only = files
        without = [elsewhere] if elsewhere is not None else []
        refused: HostError | None = None
        while True:
            may_wait = wait and only is None and refused is None
            want = _want(config, self._owner(config, body.owner), without, only, may_wait)
            try:
                at = await self._ask("cluster.place", want, Placed)
            except HostError as error:
                if only is not None:
                    only = None
                    continue
                raise refused or error from None
            try:
                client = await self._placed(at)
                if files is not None and at.node not in files:
                    bring = wire.Bring(name=config.snapshot or "", nodes=files)
                    await client.call("snapshot.bring", bring, type=wire.SnapshotInfo)
                return await client.call("sandbox.create", body, type=wire.SandboxInfo)
            except HostError as error:
                refused = error
                without.append(at.node)
            except PeerLost:
                if body.key:
                    self.delete_later(at.node, body.key)
                raise
            finally:
                self._note(self._hub.call("cluster.settle", Settle(ticket=at.ticket)))

    def _owner(self, config: SandboxConfig, owner: str) -> str:
        return config.labels.get("owner") or ("detached" if owner == "detached" else f"client {self._trunk.name.hex()}")

    async def each(
        self, method: str, body: Any, type: Any, *, keep: tuple[type[Exception], ...] = (PeerLost,)
    ) -> dict[str, Any]:
        """Every node's answer. An error of `keep` is one; a node that is lost meanwhile is left out otherwise."""

        async def ask(name: str) -> Any:
            return await (await self.at(name)).call(method, body, type=type)

        names = self._up()
        answers = await asyncio.gather(*(ask(name) for name in names), return_exceptions=True)
        found = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, keep):
                raise answer
            if not isinstance(answer, PeerLost):
                found[name] = answer
        return found

    async def _of_one(self, method: str, body: Any, type: Any) -> Any:
        """A method that names something which one of the nodes has."""
        answers = await self.each(method, body, type, keep=(SnapshotNotFound, UsageError, PeerLost))
        done = [answer for answer in answers.values() if not isinstance(answer, Exception)]
        if done:
            return done[0]
        if not answers:
            raise HostError("no node of the cluster is there")
        raise next(iter(answers.values()))

    def _note(self, work: Awaitable[Any]) -> None:
        """What nobody waits for."""

        async def quiet() -> None:
            with contextlib.suppress(RockrollError):
                await work

        task = asyncio.ensure_future(quiet())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def close(self) -> None:
        """Ends every call; the hub tells the nodes, which remove what this process owned."""
        self.closed = self.closed or PeerLost(f"the connection to {self.address} was closed by this side")
        self.on_lost = None
        self._back()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))
        if self._notes:
            await asyncio.wait(self._notes, timeout=BYE_S)
        if not self._trunk.silent:
            with contextlib.suppress(RockrollError, TimeoutError):
                await self._hub.call("cluster.bye", wire.Empty(), timeout=BYE_S)
        for client in (*self._clients.values(), self._hub):
            client.fail(self.closed)
            await client.close()
        self._trunk.close()


def _label(view: NodeView) -> str:
    return f"node {view.name} ({view.trunk.hex()})"


def _want(config: SandboxConfig, owner: str, without: list[str], only: list[str] | None, wait: bool) -> Want:
    return Want(
        owner=owner,
        cpus=config.cpus,
        memory=config.memory_bytes,
        pids=config.pids,
        image=config.image_name,
        kind=hashlib.blake2b(kind(config), digest_size=8).hexdigest(),
        without=without,
        only=only,
        wait=wait,
    )


async def connect_hub(address: str, server_key: str) -> HubNode:
    """A client of the cluster whose hub is there. PeerLost where it does not answer."""
    node = HubNode(address, server_key)
    await node.open()
    return node
