"""`rockroll bench engine --engine vllm`: path and vLLM alone get the same work, and the first round only warms up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rockroll.bench import served
from rockroll.bench.noting import Noting
from rockroll.bench.served import Asked
from rockroll.cli.bench import _check_engine
from rockroll.engine.api import GenerateRequest, Generation
from rockroll.engine.config import EngineConfig
from rockroll.errors import UsageError


class Engine:
    async def generate(self, request: GenerateRequest, *_: Any) -> Generation:
        ids = [1] * request.max_tokens
        return Generation(token_ids=ids, logprobs=[-1.0] * len(ids), versions=[0] * len(ids), finish_reason="length")


async def test_both_get_the_same_work_and_the_rates_are_of_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Engine()
    noting = Noting(engine)
    got: list[list[Asked]] = []
    took = iter([9.0, 2.0, 4.0])

    @asynccontextmanager
    async def offline(config: EngineConfig) -> AsyncIterator[Any]:
        async def alone(asked: list[Asked]) -> float:
            got.append(list(asked))
            return 8.0 if len(got) == 1 else 1.5

        yield alone, lambda: 2.0 * len(got)

    @asynccontextmanager
    async def path(config: EngineConfig, sandboxes: int, tokens: int) -> AsyncIterator[Any]:
        yield ["1", "2"], noting

    async def ask(ports: list[str], number: int, calls: int, tokens: int) -> float:
        for each in range(calls * len(ports)):
            await noting.generate(GenerateRequest(id="r", prompt_ids=[number + 5, each], max_tokens=tokens))
        return next(took)

    monkeypatch.setattr(served, "configured", lambda *_: EngineConfig())
    monkeypatch.setattr(served, "_offline", offline)
    monkeypatch.setattr(served, "_path", path)
    monkeypatch.setattr(served, "_ask", ask)
    spent = iter([1.0, 2.0, 10.0, 14.0, 20.0, 24.0])
    monkeypatch.setattr(served, "_cpu_s", lambda _: next(spent))
    result = await served.run(at_once=2, calls=3, tokens=10, rounds=2)
    assert [len(each) for each in got] == [2, 6, 6]
    assert got[1][0] == Asked([5, 0], 10) and got[2][5] == Asked([6, 5], 10)
    figures = result["figures"]
    assert figures["path_tokens_per_s"] == 120 / 6 and result["baselines"]["offline_tokens_per_s"] == 120 / 3
    assert figures["path_per_offline"] == 0.5 and figures["worst_round_path_per_offline"] == 1.5 / 4
    assert figures["tokens"] == 120
    assert figures["path_per_offline_tokens_per_cpu_s"] == 0.5, "4 s twice, where vLLM alone took 2"


def test_an_engine_or_a_dtype_that_is_none_is_refused_and_each_engine_has_a_model() -> None:
    with pytest.raises(UsageError, match=r"--engine is transformers or vllm, .* got foo and float32"):
        _check_engine("foo", "float32", "")
    with pytest.raises(UsageError, match="got transformers and float8"):
        _check_engine("transformers", "float8", "")
    assert _check_engine("transformers", "float32", "") == "tiny"
    assert _check_engine("transformers", "float32", "/models/mine") == "/models/mine"
