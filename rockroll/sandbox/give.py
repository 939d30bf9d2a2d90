"""An image that this host has and no node of a cluster does: built here, by a run or by hand.

In: a cluster, an image's name. Out: the image on one of its nodes, from where the others have it (node/bring.py).
Leaves finding out that it is missing to who wanted a box of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import AsyncGenerator

from rockroll.errors import HostError, ImageMissing
from rockroll.sandbox.cluster.client import HubNode
from rockroll.sandbox.container.parcel import archive_format
from rockroll.sandbox.container.parcels import sent
from rockroll.sandbox.container.podman import Podman, PodmanService
from rockroll.sandbox.wire import ImageRef, Parcel

_log = logging.getLogger(__name__)
_under_way: weakref.WeakKeyDictionary[HubNode, dict[str, asyncio.Task[bool]]] = weakref.WeakKeyDictionary()


async def give(cluster: HubNode, image: str) -> bool:
    """Whether a node has it from here now. Once, however many boxes of it are asked for at a time. False where this
    host has no such image or no Podman, or no node is there to take it. HostError: what that node said."""
    tasks = _under_way.setdefault(cluster, {})
    task = tasks.get(image)
    if task is None:
        task = tasks[image] = asyncio.ensure_future(_give(cluster, image))
        task.add_done_callback(lambda done: (tasks.pop(image), done.cancelled() or done.exception()))
    return await asyncio.shield(task)


async def _give(cluster: HubNode, image: str) -> bool:
    up = [view for view in cluster.nodes if view.state == "up"]
    if not up:
        return False
    node = min(up, key=lambda view: (view.boxes, view.name)).name
    async with contextlib.AsyncExitStack() as stack:
        try:
            podman = await stack.enter_async_context(PodmanService())
            found = await podman.image_inspect(image)
        except (HostError, ImageMissing):
            return False
        _log.info("image %s is on no node of the cluster; node %s gets this host's", image, node)
        pieces = await stack.enter_async_context(contextlib.aclosing(_parcels(podman, image, found)))
        await (await cluster.at(node)).call("image.write", ImageRef(name=image), parts=pieces)
    return True


async def _parcels(podman: Podman, image: str, found: dict[str, object]) -> AsyncGenerator[Parcel, None]:
    yield Parcel(image_id=str(found["Id"]).removeprefix("sha256:"))
    async with contextlib.aclosing(
        sent(podman.image_save(image, archive_format(str(found.get("ManifestType")))))
    ) as items:
        async for each in items:
            yield each
