"""`rockroll bench sync`: deliveries into a busy engine are proved, and one that is not ends the run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rockroll.bench import sync
from rockroll.engine.api import EngineInfo, GenerateRequest, Generation, Loaded
from rockroll.errors import CanaryError


class Engine:
    """Answers at once; the n-th delivery is the one that goes wrong in the way that `fault` names."""

    def __init__(self, fault: str = "", at: int = 5) -> None:
        self.fault, self.at, self.version, self.deliveries, self.folder = fault, at, 0, 0, "a"

    async def info(self) -> EngineInfo:
        return EngineInfo(model="", context_length=512, vocab_size=9, version=self.version, stop_ids=[], pid=1)

    async def generate(self, request: GenerateRequest) -> Generation:
        await asyncio.sleep(0)  # the others' turn
        version = self.version - (self.fault == "old version" and self.deliveries >= self.at)
        return Generation(token_ids=[1], logprobs=[-1.0], versions=[version], finish_reason="length")

    async def load(self, path: str, version: int) -> Loaded:
        await asyncio.sleep(0)
        self.deliveries += 1
        self.version = version
        dropped = self.deliveries == self.at and self.fault == "dropped"
        self.folder = self.folder if dropped else path
        digest = "corrupt" if self.deliveries == self.at and self.fault == "corrupt" else Path(path).name
        return Loaded(version=version, tensors=1, digest=digest)

    async def logprobs(self, ids: list[int]) -> list[float]:
        await asyncio.sleep(0)
        return [-1.0 if self.folder == "a" else -2.0] * (len(ids) - 1)


async def soak(engine: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.setattr(sync, "_memory", lambda pid: {"rss": 1.0})
    return await sync._soak(engine, 1, [Path("a"), Path("b")], 12)


async def test_what_is_delivered_well_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = await soak(Engine(), monkeypatch)
    assert figures["syncs"] == 12 and figures["rss_growth_mb"] == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("corrupt", "delivery 5: digest corrupt"),
        ("dropped", "delivery 5: log-probs are 1.000 from"),
        ("old version", "after delivery 5: versions 4|after delivery 6: versions"),
    ],
)
async def test_a_fault_ends_the_run_at_once(fault: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CanaryError, match=said):
        await soak(Engine(fault), monkeypatch)
