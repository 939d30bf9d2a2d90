"""An engine in another process.

In: the address of an engine server. Out: an `api.Engine`; what the server raises is raised here. Leaves starting the
process, and saying through `fail` that it died, to placement.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from rockroll import rpc
from rockroll.engine.api import EngineInfo, GenerateRequest, Generation, Loaded, OnTokens, Piece, Stats
from rockroll.errors import EngineError, RockrollError

_ITEM: Any = Piece | Generation
Finds = Callable[[str], Awaitable[str]]


class EngineClient:
    """Made by `connect`; belongs to one event loop."""

    def __init__(self, client: rpc.Client, finds: Finds | None = None) -> None:
        self._client, self._finds = client, finds

    @classmethod
    async def connect(cls, address: str, key: Path | None = None, finds: Finds | None = None) -> EngineClient:
        """The server may still be loading its model: the first call waits for it (ipc and tcp addresses).

        key: of a tcp link. finds: where a server on another machine finds a folder of this one.
        """
        return cls(await rpc.connect(address, key), finds)

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        if on_tokens is None:
            return await self._client.call("generate", request, type=Generation)
        count = 0
        async with aclosing(self._client.stream("generate.stream", request, type=_ITEM)) as stream:
            async for item in stream:
                if isinstance(item, Generation):
                    if count != len(item.token_ids):
                        raise _lost(request, count, len(item.token_ids))
                    return item
                if item.start != count and not (request.anew and item.start == 0):
                    raise _lost(request, count, item.start)
                count = item.start + len(item.token_ids)
                on_tokens(item)
        raise EngineError(f"the engine's answer to {request.id} ended after {count} tokens without its end")

    async def load(self, path: str, version: int, digest: str = "") -> Loaded:
        if self._finds is not None:
            path = await self._finds(path)
        body = {"path": path, "version": version, "digest": digest}
        return await self._client.call("load", body, type=Loaded)

    async def logprobs(self, ids: list[int]) -> list[float]:
        return await self._client.call("logprobs", ids, type=list[float])

    async def info(self) -> EngineInfo:
        return await self._client.call("info", type=EngineInfo)

    def pulse(self) -> AsyncGenerator[Stats, None]:
        """How the engine is, several times a second, until it is left or the process dies (PeerLost)."""
        return self._client.stream("pulse", type=Stats)

    def fail(self, error: RockrollError) -> None:
        """Every call under way and every later one raises `error`: the process is known to be dead."""
        self._client.fail(error)

    async def close(self) -> None:
        await self._client.close()


def _lost(request: GenerateRequest, count: int, start: int) -> EngineError:
    return EngineError(
        f"a piece of the engine's answer to {request.id} was lost: {count} tokens came, {start} were sent"
    )
