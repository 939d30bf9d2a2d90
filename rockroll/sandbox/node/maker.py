"""How a box of this node comes to be.

In: a config; a snapshot or another box whose files it begins with; who will own it. Out: a box that runs, in the
registry, its ends watched; or an error, and nothing left of it. Leaves its life from then on to life.py and ends.py.

    row ──► container ──► files ──► init up, limits read back ──► owner and times watched
     └──────────┴───────────┴──────────┴── error, or the caller is gone ──► removed
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from rockroll import rpc
from rockroll.errors import ImageMissing, LimitNotEnforced, RockrollError, SandboxLost, UsageError
from rockroll.sandbox.boxes.box import Box
from rockroll.sandbox.boxes.names import INSIDE, container_name, make_folder
from rockroll.sandbox.boxes.registry import Registry, Row
from rockroll.sandbox.boxes.snapshot import Fill, Snapshots
from rockroll.sandbox.boxes.status import Status
from rockroll.sandbox.config import SandboxConfig, config_of
from rockroll.sandbox.container import disk, layer
from rockroll.sandbox.container.images import Images
from rockroll.sandbox.container.oci_exec import Runtime
from rockroll.sandbox.container.podman import Podman
from rockroll.sandbox.container.profile import create_body, first_id
from rockroll.sandbox.container.spawner import Spawner
from rockroll.sandbox.linux.process import birth
from rockroll.sandbox.net.endpoint import Endpoint
from rockroll.sandbox.net.resolve import Resolve
from rockroll.sandbox.node import pools_file
from rockroll.sandbox.node.admission import Admission
from rockroll.sandbox.node.bring import Bring
from rockroll.sandbox.node.ends import Ends
from rockroll.sandbox.node.permit import Permit, reader
from rockroll.sandbox.node.quotas import owner_of
from rockroll.sandbox.node.warm import Warm
from rockroll.sandbox.wire import DEFAULT_SESSION, Fork, Owner, SnapshotInfo

ID_LABEL = "rockroll.id"


class Wish(NamedTuple):
    """What somebody asks for."""

    config: SandboxConfig
    owner: Owner
    key: str
    """wire.Create.key."""
    peer: rpc.Peer

    @property
    def account(self) -> str:
        """Whom the box is counted for."""
        return owner_of(self.config, self.owner == "detached", self.peer.pid, self.peer.id)


class Maker:
    """boxes: by id, each in it from the moment its making begins. env: variables for a new box, by its id. store:
    Podman's folder. rootless: whether that is an ordinary user's. bring: what other nodes have."""

    def __init__(
        self,
        boxes: dict[str, Box],
        registry: Registry,
        ends: Ends,
        admission: Admission,
        podman: Podman,
        runtime: Runtime,
        spawner: Spawner,
        snapshots: Snapshots,
        endpoint: Endpoint,
        env: Callable[[str], Mapping[str, str]],
        resolve: Resolve | None,
        store: Path,
        rootless: bool,
        bring: Bring,
    ) -> None:
        self._boxes, self._registry, self._ends, self._admission = boxes, registry, ends, admission
        self._podman, self._runtime, self._spawner = podman, runtime, spawner
        self._snapshots, self._endpoint, self._env, self._resolve = snapshots, endpoint, env, resolve
        self._images, self._bring = Images(podman, store), bring
        self.warm: Warm[Box] = Warm(self._make_warm, ends.remove, self._is_fresh, pools_file.save)
        read = reader(store, rootless=rootless)
        self.permit = Permit(boxes, self.warm, read, lambda config: self.warm.follow(config.pools))

    def box(self, row: Row) -> Box:
        """The box of a row, among the others from now on; nothing of it has been looked at."""
        box = self._boxes[row.id] = self._put_together(row)
        return box

    def _put_together(self, row: Row) -> Box:
        config = config_of(row.config)
        return Box(
            id=row.id,
            name=row.name,
            config=config,
            owner=row.owner,
            created=row.created,
            account=owner_of(config, row.owner == "detached", row.owner_pid),
            env=self._env(row.id),
            podman=self._podman,
            runtime=self._runtime,
            spawner=self._spawner,
            endpoint=self._endpoint,
            resolve=self._resolve,
            changed=self._changed,
        )

    def _changed(self, status: Status) -> None:
        self._registry.mark(status.id, status.state, status.cause, status.ended)
        if status.state != "running":
            self.warm.died(status.id)

    async def create(self, wish: Wish) -> Box:
        """From its image, and the files of a snapshot where it names one; a warm one where one stands ready."""
        config = wish.config
        if config.snapshot is None:
            return await self._take_warm(wish) or await self._make(wish)
        async with self._snapshots.files(config.snapshot) as files:
            snapshot = self._snapshots.get(config.snapshot)
            image = await self._image_under(snapshot, config)
            wish = wish._replace(config=dataclasses.replace(config, image=snapshot.image))
            return await self._make(wish, image, lambda upper: layer.copy(files, upper))

    async def fork(self, box: Box, body: Fork, peer: rpc.Peer) -> Box:
        """With the settings and the files of another."""
        config = config_of({**dataclasses.asdict(box.config), "name": body.name, "snapshot": None})
        wish = Wish(config, body.owner or box.owner, body.key, peer)
        return await self._make(wish, await box.image_id(), box.copy_files)

    async def _image_under(self, snapshot: SnapshotInfo, config: SandboxConfig) -> str:
        """The id of the image that a box with this config and these files stands on. UsageError, ImageMissing."""
        if not await self._podman.image_exists(snapshot.image_id):
            try:
                await self._bring.image(snapshot.image_id)
            except ImageMissing:
                raise ImageMissing(
                    f"snapshot {snapshot.name!r} stands on {snapshot.image} ({snapshot.image_id[:12]}), which is no"
                    " longer in the local store; bring that very image back, or remove the snapshot"
                ) from None
        if config.image and (await self._podman.image_inspect(config.image))["Id"] != snapshot.image_id:
            raise UsageError(
                f"image: snapshot {snapshot.name!r} stands on {snapshot.image} ({snapshot.image_id[:12]}), not on"
                f" {config.image}; leave the image out"
            )
        if first_id(config) != snapshot.first_id:
            raise UsageError(
                f"mounts: snapshot {snapshot.name!r} was taken {'with' if snapshot.first_id else 'without'} a user"
                " namespace, and a sandbox has one only where none of its mounts is writable: its files would belong to"
                " nobody; use mounts of the same kind"
            )
        return snapshot.image_id

    async def _make(self, wish: Wish, image: str = "", fill: Fill | None = None) -> Box:
        """image, fill: an image in place of the config's, and what copies the first files."""
        if not image:
            await self._current_image(wish.config.image_name)
        ticket = await self.permit.ask(wish.config, wish.account)
        try:
            row = self._row(secrets.token_hex(6), wish._replace(config=self._as_allowed(wish.config)))
            box = self.box(row)
        finally:
            ticket.used()
        id = box.id
        self._registry.put(row)
        try:
            async with self._admission.turn(box.account), box.life.being_made():
                await self._bring_up(box, row, image, fill)
            if self._ends.is_removing(box) or box.state == "gone":
                raise SandboxLost(f"sandbox {id} was deleted while it was being made", cause=box.cause)
        except BaseException:
            # Whatever there is of it goes, also when this task is being cancelled.
            await asyncio.shield(self._ends.spawn(self._ends.remove(box)))
            raise
        self._registry.mark(id, box.state, box.cause, box.status.ended)
        self._hand_over(box, wish)
        return box

    def _hand_over(self, box: Box, wish: Wish) -> None:
        if wish.owner == "connection":
            self._ends.own(box, wish.peer)
        self._ends.watch_time(box)

    def _row(self, id: str, wish: Wish) -> Row:
        """UsageError where its name is taken. Until the row's box is among the others, nothing may be awaited."""
        name = wish.config.name or f"box-{id}"
        if any(box.name == name for box in self._boxes.values()):
            raise UsageError(f"name: a sandbox named {name!r} exists; delete it or choose another name")
        row = Row(id, name, dataclasses.asdict(wish.config), wish.owner, "", time.time(), key=wish.key)
        if wish.owner == "connection" and wish.peer.pid:
            row = row._replace(owner_pid=wish.peer.pid, owner_birth=birth(wish.peer.pid))
        return row

    def _as_allowed(self, config: SandboxConfig) -> SandboxConfig:
        """Without the limits that this host cannot enforce, where its owner lets every box run so."""
        if not self.permit.config.limits.allow_unenforced:
            return config
        return dataclasses.replace(config, allow_unenforced=True)

    # -- warm pools

    async def _make_warm(self, config: SandboxConfig) -> Box:
        """One that is nobody's yet, its session open. Its row says that it is still being made: a node that finds it
        after this one was killed removes it."""
        if error := self.permit.refusal_of_refill(config):
            raise error
        id = secrets.token_hex(6)
        row = Row(id, f"box-{id}", dataclasses.asdict(self._as_allowed(config)), "connection", "", time.time())
        box = self._put_together(row)
        self._registry.put(row)
        try:
            image = await self._current_image(config.image_name)
            async with self._admission.turn("", "background"), box.life.being_made():
                await self._bring_up(box, row, image, None)
            await box.sessions.open_ahead(DEFAULT_SESSION)
        except BaseException:
            await asyncio.shield(self._ends.spawn(self._ends.remove(box)))
            raise
        box.image = image
        return box

    async def _current_image(self, name: str) -> str:
        """The id of an image, which is in the local store: from another node of the cluster where it was not.
        ImageMissing."""
        try:
            return await self._images.current(name)
        except ImageMissing:
            await self._bring.image(name)
        return await self._images.current(name)

    def images_changed(self) -> bool:
        return self._images.changed()

    async def _is_fresh(self, box: Box) -> bool:
        """It runs, and its image is what its image's name means now."""
        return box.state == "running" and not box.hull.doomed() and await self._is_current(box)

    async def _is_current(self, box: Box) -> bool:
        try:
            return box.image == await self._images.current(box.config.image_name)
        except ImageMissing:
            return False

    async def _take_warm(self, wish: Wish) -> Box | None:
        config = wish.config
        _ = self.permit.config  # pools of a node.yaml that has just changed
        if not self.warm.holds(config):
            return None
        ticket = self.permit.ask_warm(config, wish.account)
        try:
            box = await self.warm.take(config)
            if box is None:
                return None
            try:
                row = self._row(box.id, wish)
            except BaseException:
                self._ends.spawn(self._ends.remove(box))
                raise
            self._boxes[box.id] = box
        finally:
            ticket.used()
        box.hand_out(row.name, config, wish.owner, wish.account, row.created)
        self._registry.put(row._replace(container=box.container, state=box.state))
        self._hand_over(box, wish)
        return box

    async def _bring_up(self, box: Box, row: Row, image: str, fill: Fill | None) -> None:
        folder = make_folder(box.id)
        mounts = await box.hull.writable.make_disk()
        options = ["bind", "ro", "nosuid", "nodev", "noexec"]
        request = create_body(
            box.config,
            name=container_name(box.id),
            env=self._env(box.id),
            labels={ID_LABEL: box.id, **({disk.LABEL: "1"} if mounts else {})},
            mounts=[
                {"type": "bind", "source": str(folder), "destination": INSIDE, "options": options},
                *box.hull.share.prepare(),
                *mounts,
            ],
        )
        request["image"] = image or request["image"]
        creating = asyncio.ensure_future(self._podman.create(request))
        try:
            box.hull.container = await asyncio.shield(creating)
        except asyncio.CancelledError:
            self._ends.spawn(self._undo(creating))
            raise
        await box.life.up(fill)
        self._registry.put(row._replace(container=box.hull.container))
        unenforced = [limit for limit in box.hull.unenforced if limit != "kill-scope"]
        if unenforced and not box.config.allow_unenforced:
            raise LimitNotEnforced(
                f"this host does not enforce {', '.join(unenforced)}; set allow_unenforced to run without (for every"
                " sandbox: limits.allow_unenforced in node.yaml), or see `rockroll doctor` for the cure"
            )

    async def _undo(self, creating: asyncio.Future[str]) -> None:
        """A create that Podman has begun is seen to its end, however often its caller is cancelled: nobody else would
        ever know of that container."""
        try:
            container = await creating
        except RockrollError:
            return
        await self._podman.remove(container)
