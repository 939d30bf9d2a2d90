"""An engine that notes what it was asked: the same requests are then asked again of the engine alone.

In: an engine. Out: the same engine, and each request with its answer, in the order in which they were answered.
"""

from __future__ import annotations

from typing import Any

from rockroll.engine.api import Engine, GenerateRequest, Generation, OnTokens


class Noting:
    """An Engine. asked: what was answered since it was last cleared."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.asked: list[tuple[GenerateRequest, Generation]] = []

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        got = await self._engine.generate(request, on_tokens)
        self.asked.append((request, got))
        return got

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
