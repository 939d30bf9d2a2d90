"""The trainer as the controller sees it: one object, however many ranks.

In: the addresses of all ranks, by rank. Out: `api.Trainer`; every call goes to all ranks, rank 0's answer counts.
Leaves starting the ranks, and saying through `fail` that one died, to placement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from rockroll import rpc
from rockroll.errors import RockrollError
from rockroll.train.api import Exported, StepReport, TrainBatch, TrainerInfo, WorstCase
from rockroll.train.config import TrainConfig

T = TypeVar("T")


async def ranks_of(config: TrainConfig, key: Path | None = None) -> list[rpc.Client]:
    """A link to every rank, in their order. key: of those over tcp."""
    addresses = [config.rank_address(rank) for rank in range(config.ranks)]
    return [await rpc.connect(each, rpc.key_of(each, str(key or ""))) for each in addresses]


class TrainerClient:
    """Made by `connect`; belongs to one event loop. Calls made at once are served in order."""

    def __init__(self, clients: Sequence[rpc.Client]) -> None:
        self._clients = list(clients)
        self._turn = asyncio.Lock()  # ranks must see calls in one order, their collectives pair up by it

    @classmethod
    async def connect(cls, config: TrainConfig) -> TrainerClient:
        """Clients of every rank of `config`. The ranks may still be loading: the first call waits for them."""
        return cls(await ranks_of(config))

    async def worst_case(self, longest: int) -> WorstCase:
        return (await self._all("worst_case", longest, WorstCase))[0]

    async def step(self, batch: TrainBatch) -> StepReport:
        return (await self._all("step", batch, StepReport))[0]

    async def values(self, batch: TrainBatch) -> list[list[float]]:
        return (await self._all("values", batch, list[list[float]]))[0]

    async def measure(self, batch: TrainBatch) -> dict[str, float]:
        return (await self._all("measure", batch, dict[str, float]))[0]

    async def export(self, path: str) -> Exported:
        exported = (await self._all("export", path, Exported | None))[0]
        assert exported is not None  # rank 0 always says what it wrote
        return exported

    async def save(self, path: str) -> None:
        await self._all("save", path, type(None))

    async def load(self, path: str) -> int:
        return (await self._all("load", path, int))[0]

    async def logprobs(self, ids: list[int]) -> list[float]:
        return (await self._all("logprobs", ids, list[float]))[0]

    async def info(self) -> TrainerInfo:
        """Of rank 0, with the process ids of all."""
        infos: list[TrainerInfo] = await self._all("info", None, TrainerInfo)
        first = infos[0]
        return TrainerInfo(
            model=first.model,
            version=first.version,
            parameters=first.parameters,
            ranks=first.ranks,
            context=first.context,
            pids=[pid for info in infos for pid in info.pids],
        )

    async def _all(self, method: str, body: Any, result: Any) -> list[Any]:
        """Every rank's answer. The first rank that fails ends the call: the others may wait for it for ever."""
        return await self._each(method, [body] * len(self._clients), result)

    async def _each(self, method: str, bodies: Sequence[Any], result: Any) -> list[Any]:
        """Likewise, with a body for each rank."""
        async with self._turn:
            calls = [
                asyncio.ensure_future(client.call(method, body, type=result))
                for client, body in zip(self._clients, bodies, strict=True)
            ]
            try:
                return list(await asyncio.gather(*calls))
            finally:
                for call in calls:
                    call.cancel()

    def fail(self, error: RockrollError) -> None:
        """Every call under way and every later one raises `error`: a rank is known to be dead."""
        for client in self._clients:
            client.fail(error)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
