"""Plain Podman, for comparison: the same containers through the same REST service, and nothing of ours around them.

In: a SandboxConfig, a number. Out: containers that run, how long they took; all removed at the end. Leaves what is
compared to bench/sandbox.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator

from rockroll import home
from rockroll.errors import RockrollError
from rockroll.sandbox.client import finish
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container import profile
from rockroll.sandbox.container.podman import Podman, PodmanService

REMOVALS_AT_ONCE = 8


class Bare:
    """Containers with the limits of `config`, an init that only waits, and no shell."""

    def __init__(self, podman: Podman, config: SandboxConfig) -> None:
        self._podman, self._config = podman, config
        self._names: set[str] = set()
        self._made = 0

    async def start(self) -> str:
        """create + start; the container's name."""
        self._made += 1
        name = f"rockroll-bench-{home.home_id()}-{os.getpid()}-{self._made}"
        self._names.add(name)
        # By our home's label a node finds what a killed benchmark has left, and removes it at its start.
        await self._podman.create(profile.create_body(self._config, name=name))
        await self._podman.start(name)
        return name

    async def remove(self, name: str) -> None:
        await self._podman.remove(name)
        self._names.discard(name)

    async def storm(self, count: int, at_once: int) -> float:
        """Seconds until `count` run."""
        slots = asyncio.Semaphore(at_once)

        async def one() -> None:
            async with slots:
                await self.start()

        begun = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(count)))
        return time.perf_counter() - begun

    async def remove_all(self) -> None:
        slots = asyncio.Semaphore(REMOVALS_AT_ONCE)

        async def one(name: str) -> None:
            async with slots:
                await self.remove(name)

        names = list(self._names)
        done = await asyncio.gather(*(one(name) for name in names), return_exceptions=True)
        for error in done:
            if isinstance(error, RockrollError):
                raise error


@contextlib.asynccontextmanager
async def bare(config: SandboxConfig) -> AsyncIterator[Bare]:
    """Under a service of its own with rockroll's containers.conf; at the end, however it comes, nothing is left."""
    service = PodmanService()
    podman = await service.start()
    made = Bare(podman, config)
    try:
        yield made
    finally:
        try:
            await finish(made.remove_all())
        finally:
            await service.close()
