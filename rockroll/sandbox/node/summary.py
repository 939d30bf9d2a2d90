"""What a node says of itself to the hub of its cluster.

In: its boxes, what its host has left, its admission. Out: rows and loads, and the ids of boxes as they come and go.
Leaves saying it to placement/member.py, and what follows to cluster/scheduler.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping

from rockroll.sandbox.boxes.box import Box
from rockroll.sandbox.boxes.registry import Registry
from rockroll.sandbox.cluster.wire import BoxRow, Load
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container.podman import Podman
from rockroll.sandbox.node.admission import Admission
from rockroll.sandbox.node.limits import binding
from rockroll.sandbox.node.maker import Maker


class Summary:
    """boxes: by id, those of people: warm ones give way to them, and are counted in `load` alone."""

    def __init__(
        self, boxes: Mapping[str, Box], maker: Maker, admission: Admission, registry: Registry, podman: Podman
    ) -> None:
        self._boxes, self._maker, self._admission = boxes, maker, admission
        self._registry, self._podman = registry, podman

    def follow(self, changed: Callable[[str], None]) -> None:
        """`changed` is told the id of each box that comes or goes."""
        self._registry.changed = changed

    def most(self) -> tuple[float, int, int]:
        """CPUs that there are; bytes of memory and pids that may be granted (limits of node.yaml)."""
        most = {room.name: room.most for room in self._maker.permit.rooms(SandboxConfig())}
        return len(os.sched_getaffinity(0)), int(most["memory limits"]), int(most["pids"])

    def row(self, id: str) -> BoxRow | None:
        """A box that there is."""
        box = self._boxes.get(id)
        if box is None:
            return None
        granted = box.granted
        return BoxRow(
            id=box.id,
            name=box.name,
            account=box.account,
            cpus=granted.cpus,
            memory=granted.memory,
            pids=granted.pids,
            image=box.config.image_name,
        )

    def rows(self) -> list[BoxRow]:
        return [row for id in self._boxes if (row := self.row(id)) is not None]

    def load(self) -> Load:
        return Load(
            room=binding(self._maker.permit.rooms(SandboxConfig()))[0].boxes,
            limit=self._admission.limit,
            busy=self._admission.running + sum(self._admission.waiting().values()),
            warm={digest(kind): ready for kind, ready in self._maker.warm.ready().items()},
        )

    async def images(self) -> list[str]:
        """Names and ids of the images in the local store."""
        found = await self._podman.images()
        names = [name for image in found for name in image.get("RepoTags") or []]
        return names + [str(image["Id"]).removeprefix("sha256:") for image in found]

    def images_changed(self) -> bool:
        """Whether an image has come, gone or been renamed since this was asked."""
        return self._maker.images_changed()


def digest(kind: bytes) -> str:
    """A kind of box (config.kind) in short."""
    return hashlib.blake2b(kind, digest_size=8).hexdigest()
