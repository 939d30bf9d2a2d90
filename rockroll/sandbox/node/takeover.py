"""What a node does at its start with what the one before it left.

In: the registry, Podman's containers, the folders of this home. Out: the boxes that still have an owner, adopted: the
detached ones, and those whose owner's process lives; the rest removed, and every file of theirs. Leaves one box's
adoption to life.py. One that resists is no reason to serve nobody: it is logged.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Collection

from rockroll import home
from rockroll.errors import RockrollError, SandboxNotFound
from rockroll.sandbox.boxes.box import Box
from rockroll.sandbox.boxes.registry import Registry, Row
from rockroll.sandbox.container import disk
from rockroll.sandbox.container.podman import HOME_LABEL, Podman
from rockroll.sandbox.container.profile import remove_cgroups
from rockroll.sandbox.exec import saved
from rockroll.sandbox.linux.process import birth
from rockroll.sandbox.node.admission import Admission
from rockroll.sandbox.node.ends import Ends
from rockroll.sandbox.node.maker import ID_LABEL, Maker
from rockroll.sandbox.wire import Cause

_log = logging.getLogger(__name__)


async def take_over(
    boxes: Collection[str], registry: Registry, podman: Podman, maker: Maker, ends: Ends, admission: Admission
) -> None:
    """boxes: the ids of those that the maker has made, none yet."""
    found = await podman.list({HOME_LABEL: home.home_id()})
    containers = {str(entry["Labels"].get(ID_LABEL, "")): entry for entry in found}
    for row in registry.rows():
        owned = row.owner == "detached" or birth(row.owner_pid) == row.owner_birth != 0
        if row.id in containers and owned and row.state != "starting":
            del containers[row.id]
            await _adopt(row, maker, ends)
        else:
            registry.drop(row.id, "node_lost" if owned else "owner_gone", time.time())
    removals = [_remove(podman, admission, entry["Id"]) for entry in containers.values()]
    for error in await asyncio.gather(*removals, return_exceptions=True):
        if isinstance(error, BaseException):
            _log.error("a container of an earlier node could not be removed: %s", error)
    for entry in containers.values():
        remove_cgroups(entry["Id"])
    await _sweep(boxes)


async def _remove(podman: Podman, admission: Admission, container: str) -> None:
    async with admission.turn("", "remove"):
        await podman.remove(container)


async def _adopt(row: Row, maker: Maker, ends: Ends) -> None:
    box = maker.box(row)
    box.commands.load()
    try:
        await box.life.adopt(row.container, row.state, row.cause, row.ended)
    except SandboxNotFound:
        await _discard(box, "node_lost", ends)
        return
    if row.owner == "connection":
        try:
            ends.watch_owner(row)
        except ProcessLookupError:
            await _discard(box, "owner_gone", ends)
            return
    ends.watch_time(box)


async def _discard(box: Box, cause: Cause, ends: Ends) -> None:
    try:
        await ends.remove(box, cause)
    except RockrollError as error:
        _log.error("sandbox %s of an earlier node could not be removed: %s", box.id, error)


async def _sweep(boxes: Collection[str]) -> None:
    """Removes the folders, disks and files of boxes that there are no more."""
    left = [
        *(folder for folder in (home.runtime_dir() / "b").glob("*") if folder.name not in boxes),
        # Of a `rockroll debug` that was killed.
        *(path for path in home.runtime_dir().glob("tty-*-*") if not birth(int(path.name.split("-")[1]))),
        *(folder for folder in (home.node_dir() / "commands").glob("*") if folder.name not in boxes),
        *(folder for folder in saved.folder().glob("*") if folder.name not in boxes),
    ]
    for folder in left:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    await disk.whole(lambda: disk.sweep(boxes))
    for spool in (home.node_dir() / "spool").glob("*"):
        if spool.stem not in boxes:
            spool.unlink(missing_ok=True)
