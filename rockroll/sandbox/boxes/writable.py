"""What one box writes on this host: its container's writable layer, and the disk that holds it where that is limited.

In: a container, a config. Out: the layer's folder, filled before the first start or copied while nobody writes. Leaves
the copying itself to layer.py, the small file system to disk.py, and holding processes still to freezer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from rockroll.errors import HostError, LimitNotEnforced, UsageError
from rockroll.sandbox.boxes import recycle
from rockroll.sandbox.boxes.snapshot import Fill
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container import disk, layer, profile
from rockroll.sandbox.container.podman import Podman
from rockroll.sandbox.linux.gate import Gate


class Writable:
    """Of one box."""

    def __init__(self, sandbox_id: str, config: SandboxConfig, podman: Podman) -> None:
        self._config, self._podman = config, podman
        self._disk = disk.Disk(sandbox_id)
        self._on_disk: Path | None = None
        """The layer's folder, while its disk is to be under it."""
        self._upper: Path | None = None
        """The layer, while the box runs."""
        self.writers = Gate()
        """Shared by what the node writes into the box's files, for one step each; alone: nobody writes."""

    async def make_disk(self) -> list[dict[str, Any]]:
        """The disk that the config asks for, if it does; the OCI mounts that the container then needs, [] without one.

        Raises LimitNotEnforced.
        """
        size, owner = self._config.disk_bytes, profile.first_id(self._config)
        if size is None:
            return []
        try:
            return await disk.whole(lambda: self._disk.make(size, owner, resolvers=self._config.network == "open"))
        except disk.NoDisk as error:
            if self._config.allow_unenforced:
                return []
            raise LimitNotEnforced(
                f"this host does not enforce disk: {error}; set allow_unenforced to run without"
            ) from None

    async def prepare(self, container: str, fill: Fill | None) -> None:
        """Before a start: the disk is mounted where there is one, and `fill` puts the first files in."""
        if fill is None and self._config.disk is None:
            return
        upper = await self._layer(container)
        if fill is None:
            return
        try:
            await fill(upper)
            if self.missed():  # they went beside the disk
                await fill(await self._layer(container))
        except layer.NoSpace:
            if self._config.disk is None:
                raise
            raise UsageError(
                f"disk: {self._config.disk} has no room for the files that the sandbox should begin with; ask for more"
            ) from None

    async def _layer(self, container: str) -> Path:
        """The writable layer on the host, its own disk mounted where it has one."""
        found = await self._podman.inspect(container)
        upper = ((found.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
        if not upper:
            raise HostError("Podman's storage driver here has no writable layer to copy; use overlay (storage.conf)")
        if found["Config"]["Labels"].get(disk.LABEL):
            self._on_disk = Path(upper).parent
            await disk.whole(lambda: self._disk.attach(Path(upper).parent))
        return Path(upper)

    def missed(self) -> bool:
        """Whether the box was started without its disk.

        Any Podman command that ends while no container is mounted detaches its whole storage folder for a moment, and
        what is mounted in there with it (containers/storage: the overlay driver's Cleanup). A disk that was attached
        and whose box was not started yet is then gone.
        """
        return self._on_disk is not None and not self._disk.under(self._on_disk)

    def started(self, graph: Mapping[str, Any]) -> None:
        """The box runs. graph: the GraphDriver of `podman inspect`."""
        upper = (graph.get("Data") or {}).get("UpperDir")
        self._upper = Path(upper) if upper else None

    async def copy(self, container: str, target: Path, still: AbstractAsyncContextManager[Any]) -> None:
        """Copies the layer into an empty folder. still: a context in which no process of the box runs; uploads wait."""
        upper = await self._layer(container)
        async with self.writers.alone(), still:
            await layer.copy(upper, target)

    def usage(self, init: int) -> tuple[int, int]:
        """(bytes written, limit), 0 for no limit. Blocks: it adds up the layer where there is no disk to ask."""
        used, limit = disk.usage(init) if self._disk.exists() else (0, 0)
        if limit:
            return used, limit
        return (recycle.disk_bytes(self._upper) if self._upper else 0), limit

    async def remove(self) -> None:
        """The disk goes; the layer has gone with its container. Raises HostError."""
        if self._disk.exists():
            await disk.whole(self._disk.remove)
