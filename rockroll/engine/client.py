"""An engine in another process.

In: the address of an engine server. Out: an `api.Engine`; what the server raises is raised here. Leaves starting the
process, and saying through `fail` that it died, to placement.
"""

from __future__ import annotations

from rockroll import rpc
from rockroll.engine.api import EngineInfo, GenerateRequest, Generation, Loaded
from rockroll.errors import RockrollError


class EngineClient:
    """Made by `connect`; belongs to one event loop."""

    def __init__(self, client: rpc.Client) -> None:
        self._client = client

    @classmethod
    async def connect(cls, address: str) -> EngineClient:
        """The server may still be loading its model: the first call waits for it (ipc and tcp addresses)."""
        return cls(await rpc.connect(address))

    async def generate(self, request: GenerateRequest) -> Generation:
        return await self._client.call("generate", request, type=Generation)

    async def load(self, path: str, version: int) -> Loaded:
        return await self._client.call("load", {"path": path, "version": version}, type=Loaded)

    async def logprobs(self, ids: list[int]) -> list[float]:
        return await self._client.call("logprobs", ids, type=list[float])

    async def info(self) -> EngineInfo:
        return await self._client.call("info", type=EngineInfo)

    def fail(self, error: RockrollError) -> None:
        """Every call under way and every later one raises `error`: the process is known to be dead."""
        self._client.fail(error)

    async def close(self) -> None:
        await self._client.close()
