"""Trainer and engine that compute otherwise than at first stop the run, though every byte was proved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rockroll.controller.canary import LEAST, TOKENS, Canary
from rockroll.controller.config import CanaryConfig
from rockroll.errors import CanaryError, UsageError


class End:
    """A trainer or an engine whose log-probs are `said`, and `off` more."""

    def __init__(self, off: float = 0.0) -> None:
        self.off = off
        self.asked: list[list[int]] = []

    async def logprobs(self, ids: list[int]) -> list[float]:
        self.asked.append(ids)
        return [-1.0 + self.off] * (len(ids) - 1)


def canary(folder: Path, prompts: int = 8, most: float = 0.01) -> Canary:
    return Canary([[7] * 50] * prompts, CanaryConfig(max_abs_dlogp=most), folder / "canary.json")


async def check(one: Canary, off: float) -> Any:
    trainer, engine = End(), End(off)
    return await one.check(trainer, engine)  # type: ignore[arg-type]


def test_a_prompt_of_one_token_is_refused_before_anything_is_compared(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="canary prompt 2 is 1 token of this model"):
        Canary([[7, 8], [7]], CanaryConfig(), tmp_path / "canary.json")


async def test_what_it_was_at_first_is_allowed_three_times(tmp_path: Path) -> None:
    one = canary(tmp_path)
    assert await check(one, 1e-3) == pytest.approx((1e-3, 1e-3))
    assert (await check(one, 2.9e-3)).mean == pytest.approx(2.9e-3)
    with pytest.raises(CanaryError, match=r"the engine compute otherwise.* 3\.10e-03 apart .* was 1\.00e-03"):
        await check(one, 3.1e-3)


async def test_rounding_is_allowed_where_there_was_none_at_first(tmp_path: Path) -> None:
    one = canary(tmp_path)
    await check(one, 0.0)
    await check(one, 0.9 * LEAST)
    with pytest.raises(CanaryError, match="compute otherwise"):
        await check(one, 1.1 * LEAST)


async def test_a_run_that_goes_on_is_held_to_its_first_check(tmp_path: Path) -> None:
    await check(canary(tmp_path), 1e-5)
    with pytest.raises(CanaryError, match="compute otherwise"):
        await check(canary(tmp_path), 1e-3)


@pytest.mark.parametrize("off", [-0.5, math.nan])
async def test_one_token_too_far_apart_is_named_with_both_values(tmp_path: Path, off: float) -> None:
    with pytest.raises(
        CanaryError, match=r"canary prompt 1: log-prob of token 1 \(id 7\) is -1\.000000 .* (-1\.5|nan)"
    ):
        await check(canary(tmp_path), off)
    assert not (tmp_path / "canary.json").exists(), "what is wrong from the start is no measure"


async def test_each_prompt_counts_with_its_first_tokens(tmp_path: Path) -> None:
    trainer, engine = End(), End()
    await canary(tmp_path, prompts=3).check(trainer, engine)  # type: ignore[arg-type]
    assert trainer.asked == engine.asked == [[7] * TOKENS] * 3


@pytest.mark.parametrize("prompts", [[], [" "], ["fine", "x"]])
def test_prompts_are_texts_of_two_characters(prompts: list[str]) -> None:
    with pytest.raises(ValueError, match="two characters"):
        CanaryConfig(prompts=prompts)
