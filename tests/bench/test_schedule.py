"""What overlap and redundancy are worth, by a clock that passes while all wait: the same on every machine."""

from __future__ import annotations

import asyncio

import pytest

from rockroll.bench import schedule, waits
from rockroll.controller.model_path import prepare
from rockroll.rollout.tokenizer import ChatTokenizer


def test_time_passes_while_all_wait_and_only_then() -> None:
    async def work() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(1800))
        sum(range(100_000))
        return loop.time() - began

    assert abs(waits.run(work()) - 3600) < 1e-3


@pytest.mark.slow  # some seconds of processor time
def test_the_schedule_keeps_what_is_promised_of_it() -> None:
    ratios = schedule._ratios(*waits.run(schedule._runs(ChatTokenizer(prepare("tiny")))))
    assert ratios["async_speedup"] >= 2.5 and ratios["redundant_speedup"] >= 3.0, ratios
    assert ratios["redundant_sandbox_s_saved_ratio"] >= 1.3, ratios
