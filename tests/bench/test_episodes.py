"""`rockroll bench episodes`: the engine alone is asked what the episodes asked, and draws the same tokens."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from rockroll.bench import episodes
from rockroll.engine.api import GenerateRequest, Generation
from rockroll.errors import UsageError
from rockroll.recipe.load import load

LAKE = Path(__file__).parents[2] / "recipes" / "frozen_lake.yaml"


def asked(id: str, seed: int) -> tuple[GenerateRequest, Generation]:
    request = GenerateRequest(id=id, prompt_ids=[1], max_tokens=2, seed=seed)
    return request, Generation(token_ids=[seed], logprobs=[0.0], versions=[0], finish_reason="length")


class Alone:
    """Notes how many requests it has at once, and which came before which."""

    def __init__(self) -> None:
        self.now, self.most = 0, 0
        self.seeds: list[int | None] = []

    async def generate(self, request: GenerateRequest) -> Generation:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        self.seeds.append(request.seed)
        return Generation(token_ids=[1, 2], logprobs=[0.0] * 2, versions=[0] * 2, finish_reason="length")


async def test_turns_of_a_conversation_follow_each_other_and_no_more_are_asked_than_played() -> None:
    found = episodes.chains([asked("a.b.0", 1), asked("c.0", 2), asked("a.b.1", 3), asked("d.0", 4), asked("c.1", 5)])
    assert [[request.seed for request in each] for each in found] == [[1, 3], [2, 5], [4]]
    engine = Alone()
    assert await episodes.replay(engine, found, 2) == 10  # type: ignore[arg-type]
    assert engine.most == 2 and sorted(map(str, engine.seeds)) == ["1", "2", "3", "4", "5"]
    assert engine.seeds.index(1) < engine.seeds.index(3) < engine.seeds.index(4) > engine.seeds.index(2)


async def test_a_recipe_is_measured_and_both_sides_sample_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(LAKE, ["rollout.groups=2", "rollout.episodes=2", "task.max_turns=3"])
    rates: list[list[tuple[int, float]]] = []
    rate = episodes._rate
    monkeypatch.setattr(episodes, "_rate", lambda each: (rates.append(list(each)), rate(each))[1])
    found = await episodes.run(config, rounds=2)
    through, alone = rates[:2]
    assert [tokens for tokens, _ in through] == [tokens for tokens, _ in alone] and len(through) == 2
    figures = found["figures"]
    assert figures["episodes_per_engine"] == pytest.approx(
        figures["episodes_tokens_per_s"] / found["baselines"]["engine_tokens_per_s"]
    )
    assert 0 < figures["worst_round_episodes_per_engine"] <= 1.5 * figures["episodes_per_engine"]
    assert 1 <= figures["turns_per_conversation"] <= 3


async def test_a_recipe_without_episodes_is_refused() -> None:
    config = dataclasses.replace(load(LAKE), replay="runs/lake")
    with pytest.raises(UsageError, match="measures episodes that a model plays"):
        await episodes.run(config)
