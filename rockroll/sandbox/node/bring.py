"""What this node lacks and other nodes of its cluster have: images, and snapshots with the image under them.

In: a name, the way to the cluster's hub. Out: the image in the local store, the snapshot among this node's, each
brought once however many starts wait for it; and the other side, which gives them. Leaves who gives an image to the
hub (cluster/sources.py), streams of bytes to container/parcel.py.

    image     local ── no ──► another node's ── none, or all failed ──► the registry ── not there ──► ImageMissing
    snapshot  image under it ──► files ──► digest compared ──► named

A transfer goes on when nobody waits for it any more; one that fails leaves nothing, and the next start begins another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from rockroll import home, rpc
from rockroll.errors import HostError, ImageMissing, PeerLost, RockrollError, SnapshotNotFound, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.boxes.snapshot import Snapshots
from rockroll.sandbox.cluster.client import HubNode, connect_hub
from rockroll.sandbox.cluster.sources import pullable
from rockroll.sandbox.cluster.wire import ImageWant
from rockroll.sandbox.config import config_of
from rockroll.sandbox.container import parcel
from rockroll.sandbox.container.image import BUILD_TIMEOUT_S
from rockroll.sandbox.container.parcels import Checked, sent
from rockroll.sandbox.container.podman import Podman
from rockroll.sandbox.container.profile import first_id
from rockroll.sandbox.where import Hub
from rockroll.sandbox.wire import ImageRef, Parcel, SnapshotInfo, SnapshotRef

_log = logging.getLogger(__name__)


class Bring:
    """hub: of the cluster that this node is in, None where it is in none."""

    def __init__(self, podman: Podman, snapshots: Snapshots, hub: Callable[[], Hub | None]) -> None:
        self._podman, self._snapshots, self._hub = podman, snapshots, hub
        self._under_way: dict[tuple[str, str], asyncio.Task[Any]] = {}

    async def close(self) -> None:
        """Transfers under way are given up."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _once(self, key: tuple[str, str], work: Callable[[], Awaitable[Any]]) -> Any:
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(work())
            task.add_done_callback(lambda done: (self._under_way.pop(key), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    # -- images

    async def image(self, name: str) -> None:
        """The local store has it now; it did not. ImageMissing, with what each place said."""
        hub = self._hub()
        if hub is None:
            await self._podman.image_inspect(name)  # which says what to do on one host
            return
        await self._once(("image", name), lambda: self._image(hub, name))

    async def _image(self, hub: Hub, name: str) -> None:
        refused: list[str] = []
        without: list[str] = []
        try:
            async with _joined(hub) as cluster:
                while True:
                    want = ImageWant(node=home.node_name(), image=name, without=without)
                    async with contextlib.aclosing(cluster.image_source(want)) as answers:
                        source = (await anext(answers)).node
                        if source is None:
                            await self._pull(name, refused)
                        elif (said := await self._copied(cluster, source, name)) is not None:
                            _log.warning("image %s could not be copied from node %s: %s", name, source, said)
                            refused.append(f"{source}: {said}")
                            without = [*without, source]
                            continue
                        await cluster.image_got(want)
                        return
        except PeerLost as error:
            raise ImageMissing(f"image {name} is not on this node, and no other can be asked: {error}") from None

    async def _pull(self, name: str, refused: list[str]) -> None:
        """From its registry. ImageMissing."""
        why = f" ({'; '.join(refused)})" if refused else ""
        if not pullable(name):
            raise ImageMissing(
                f"no node of the cluster has image {name}, or can give it{why}; build it on one: rockroll image build"
            )
        _log.info("image %s comes from its registry: no node of the cluster can give it%s", name, why)
        try:
            await self._podman.image_pull(name, BUILD_TIMEOUT_S)
        except ImageMissing as error:
            raise ImageMissing(f"{error.message}; and no node of the cluster has it, or can give it{why}") from None

    async def _copied(self, cluster: HubNode, node: str, name: str) -> str | None:
        """None: it is here, the very image that the other node has; else why not."""
        try:
            client = await cluster.at(node)
            async with contextlib.aclosing(client.stream("image.read", ImageRef(name=name), type=Parcel)) as items:
                found = await self._loaded(name, items)
        except RockrollError as error:
            return error.message
        _log.info("image %s (%s) was copied from node %s", name, found[:12], node)
        return None

    async def give_image(self, body: ImageRef, _peer: rpc.Peer) -> AsyncIterator[Parcel]:
        found = await self._podman.image_inspect(body.name)
        id = str(found["Id"]).removeprefix("sha256:")
        yield Parcel(image_id=id)
        archive = self._podman.image_save(body.name, parcel.archive_format(found.get("ManifestType")))
        async with contextlib.aclosing(sent(archive)) as items:
            async for each in items:
                yield each

    async def take_image(self, body: ImageRef, _peer: rpc.Peer, parts: rpc.Parts) -> None:
        """From a client whose host has it. HostError; nothing where it is here already."""
        hub = self._hub()
        if hub is None:
            raise UsageError("an image is given to a node of a cluster, and this node is in none")
        if not await self._podman.image_exists(body.name):
            found = await self._loaded(body.name, parts.of(Parcel))
            _log.info("image %s (%s) was given by a client", body.name, found[:12])
        async with _joined(hub) as cluster:
            await cluster.image_got(ImageWant(node=home.node_name(), image=body.name))

    async def _loaded(self, name: str, items: AsyncIterator[Parcel]) -> str:
        """The id of what has come, and is here now. HostError, ImageMissing."""
        head = await anext(items)
        pieces = Checked(items)
        try:
            await self._podman.image_load(pieces.all())
        except HostError as error:
            raise pieces.error or error from None
        found = str((await self._podman.image_inspect(name))["Id"]).removeprefix("sha256:")
        if found != head.image_id:
            raise HostError(f"image {name} came as {found[:12]}, and there it is {head.image_id[:12]}")
        return found

    # -- snapshots

    async def bring_snapshot(self, body: wire.Bring, _peer: rpc.Peer) -> SnapshotInfo:
        hub = self._hub()
        if hub is None:
            raise UsageError("a snapshot is brought from another node of a cluster, and this node is in none")
        return await self._once(("snapshot", body.name), lambda: self._snapshot(hub, body))

    async def _snapshot(self, hub: Hub, body: wire.Bring) -> SnapshotInfo:
        with contextlib.suppress(SnapshotNotFound):
            return self._snapshots.get(body.name)
        refused: list[str] = []
        async with _joined(hub) as cluster:
            for node in body.nodes:
                try:
                    info = await self._snapshot_of(await cluster.at(node), body.name)
                except RockrollError as error:
                    _log.warning("snapshot %s could not be copied from node %s: %s", body.name, node, error)
                    refused.append(f"{node}: {error}")
                else:
                    _log.info("snapshot %s was copied from node %s", body.name, node)
                    return info
        raise HostError(f"snapshot {body.name!r} could not be copied to node {home.node_name()}: {'; '.join(refused)}")

    async def _snapshot_of(self, client: rpc.Client, name: str) -> SnapshotInfo:
        async with contextlib.aclosing(client.stream("snapshot.read", SnapshotRef(name=name), type=Parcel)) as items:
            head = await anext(items)
            info = head.snapshot
            assert info is not None
            if first_id(config_of(info.config)) != info.first_id:
                raise HostError("its files are of another user namespace than this node's sandboxes have")
            if not await self._podman.image_exists(info.image_id):
                await self.image(info.image_id)

            async def fill(folder: Any) -> None:
                await parcel.unpack(Checked(items).all(), folder)
                if await asyncio.to_thread(parcel.digest, folder) != head.tree:
                    raise HostError("what lies here is not what was sent: this host's file system keeps less of a file")

            return await self._snapshots.take(info, fill)

    async def give_snapshot(self, body: SnapshotRef, _peer: rpc.Peer) -> AsyncIterator[Parcel]:
        info = self._snapshots.get(body.name)
        async with self._snapshots.files(body.name) as files:
            yield Parcel(snapshot=info, tree=await asyncio.to_thread(parcel.digest, files))
            async with contextlib.aclosing(sent(parcel.pack(files))) as items:
                async for each in items:
                    yield each


@contextlib.asynccontextmanager
async def _joined(hub: Hub) -> AsyncIterator[HubNode]:
    """A connection of its own: that to the hub, over which others call this node, has one line to each of them."""
    cluster = await connect_hub(hub.address, hub.server_key)
    try:
        yield cluster
    finally:
        await cluster.close()
