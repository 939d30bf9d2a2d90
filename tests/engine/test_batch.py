"""Batching: what joins, what is computed, what is freed. On a real model, one thread, step by step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface

from rockroll.engine import weights
from rockroll.engine.api import GenerateRequest
from rockroll.engine.batch import Batch
from rockroll.engine.config import EngineConfig
from rockroll.engine.rows import Sequence
from rockroll.engine.slots import Slots

DRAW = random.Random(0)
PROMPT = [DRAW.randrange(3, 96) for _ in range(40)]


class Counted:
    """The model, counting the tokens it computes in each forward."""

    def __init__(self, model: Any) -> None:
        self.model, self.device, self.dtype = model, model.device, model.dtype
        self.tokens: list[int] = []

    def __call__(self, **inputs: Any) -> Any:
        self.tokens.append(inputs["input_ids"].numel())
        return self.model(**inputs)


@pytest.fixture(scope="module")
def model(models: Path) -> Iterator[Any]:
    with torch.inference_mode():
        yield weights.build(EngineConfig(model=str(models / "first")))


def batch(model: Any, **changes: int) -> tuple[Batch, Counted]:
    slots = Slots()
    AttentionInterface.register("batch_test", slots.attend)
    model.set_attn_implementation("batch_test")
    counted = Counted(model)
    wanted = {
        "max_batch": 8,
        "context_length": 160,
        "prefill_tokens": 512,
        "prefix_cache": 4,
        "prefix_cache_bytes": 2**30,
    }
    return Batch(counted, slots, **(wanted | changes)), counted


def sequence(prompt: list[int], seed: int = 0, max_tokens: int = 5) -> Sequence:
    request = GenerateRequest(id="b", prompt_ids=prompt, max_tokens=max_tokens, temperature=1.0)
    return Sequence(request, seed)


def run(made: Batch, *sequences: Sequence) -> None:
    for each in sequences:
        made.add(each)
    while made.busy:
        made.step()


def test_requests_that_arrive_at_different_times_share_steps(model: Any) -> None:
    made, counted = batch(model)
    made.add(sequence(PROMPT[:10], max_tokens=20))
    for _ in range(3):
        made.step()
    made.add(sequence(PROMPT[20:30], max_tokens=20))
    made.step()
    made.step()
    assert counted.tokens == [10, 1, 1, 1 + 10, 2]


def test_equal_prompts_that_arrive_together_are_computed_once(model: Any) -> None:
    made, counted = batch(model)
    group = [sequence(PROMPT, seed) for seed in range(8)]
    run(made, *group)
    assert counted.tokens[0] == 40 + 7  # the last token of each: its logits are wanted
    alone, _ = batch(model)
    for seed, member in enumerate(group):
        twin = sequence(PROMPT, seed)
        run(alone, twin)
        assert twin.ids == member.ids
        assert twin.logprobs == pytest.approx(member.logprobs, abs=1e-5)


def test_a_next_turn_computes_only_what_is_new(model: Any) -> None:
    made, counted = batch(model)
    first = sequence(PROMPT)
    run(made, first)
    before = len(counted.tokens)
    run(made, sequence([*first.ids, 5, 6, 7]))
    assert counted.tokens[before] == 1 + 3  # the last sampled token was never fed


def test_kept_turns_stay_within_their_memory(model: Any) -> None:
    a_token = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, head size, bytes
    made, counted = batch(model, prefix_cache_bytes=60 * a_token)
    first, second = sequence(PROMPT), sequence(PROMPT[::-1])
    run(made, first, second)
    before = len(counted.tokens)
    run(made, sequence([*second.ids, 5]))
    assert counted.tokens[before] == 2
    before = len(counted.tokens)
    run(made, sequence([*first.ids, 5]))
    assert counted.tokens[before] == len(first.ids) + 1, "44 + 44 positions were kept in room for 60"


def test_a_prompt_longer_than_a_step_takes_several(model: Any) -> None:
    made, counted = batch(model, prefill_tokens=16)
    long, short = sequence(PROMPT, 1), sequence(PROMPT[:1], 2)
    run(made, long, short)
    assert counted.tokens[:3] == [16, 16, 8 + 1]
    whole, _ = batch(model)
    twin = sequence(PROMPT, 1)
    run(whole, twin)
    assert twin.ids == long.ids


def test_an_aborted_sequence_frees_its_row_for_the_next_step(model: Any) -> None:
    made, counted = batch(model, max_batch=1)
    running, waiting, gone = sequence(PROMPT[:10], max_tokens=50), sequence(PROMPT[20:25]), sequence(PROMPT[30:33])
    for each in (running, gone, waiting):
        made.add(each)
    made.step()
    made.abort(gone)
    made.abort(running)
    made.step()
    assert counted.tokens == [10, 5]
    assert waiting.generated == 1
    made.abort(waiting)
    assert not made.busy


def test_rows_close_up_when_many_have_left(model: Any) -> None:
    made, _ = batch(model)
    members = [sequence(PROMPT[i:], i, max_tokens=30 if i > 5 else 3) for i in range(8)]
    twins = [sequence(PROMPT[i:], i, max_tokens=30) for i in (6, 7)]
    run(made, *members)
    alone, _ = batch(model, prefix_cache=0)
    for member, twin in zip(members[6:], twins, strict=True):
        run(alone, twin)
        assert member.ids == twin.ids
        assert member.logprobs == pytest.approx(twin.logprobs, abs=1e-5)
    survivors = [sequence(PROMPT[i:], i, max_tokens=30) for i in range(4)]
    for each in survivors:
        made.add(each)
    made.step()
    for each in survivors[:3]:
        made.abort(each)
    made.step()
    assert survivors[3].row == 0


def test_new_weights_make_newcomers_compute_everything(model: Any) -> None:
    made, counted = batch(model)
    running = sequence(PROMPT, max_tokens=50)
    run(made, sequence(PROMPT))
    made.add(running)
    made.step()
    made.weights_changed(1)
    before = len(counted.tokens)
    made.add(sequence(PROMPT))
    made.step()
    assert counted.tokens[before] == 1 + 40
    while made.busy:
        made.step()
    assert running.versions == [0] + [1] * 49
    after = len(counted.tokens)
    run(made, sequence([*running.ids, 9]))
    assert counted.tokens[after] > 40, "keys of mixed weights were kept for a next turn"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_schedule_gives_each_request_its_own_answer(model: Any, data: st.DataObject) -> None:
    """Prompts that share beginnings, arriving and aborted at any time: each answer is that of its prompt alone."""
    size = data.draw(st.integers(1, 4), label="max_batch")
    made, _ = batch(model, max_batch=size, prefill_tokens=data.draw(st.sampled_from([5, 30, 512])), prefix_cache=size)
    sequences: list[Sequence] = []
    for number in range(data.draw(st.integers(1, 8), label="requests")):
        start = data.draw(st.integers(0, 2))
        prompt = [*PROMPT[start : start + data.draw(st.integers(1, 38))], data.draw(st.integers(3, 5))]
        sequences.append(sequence(prompt, number, data.draw(st.integers(1, 6))))
        made.add(sequences[-1])
        for _ in range(data.draw(st.integers(0, 3))):
            made.step()
        if data.draw(st.booleans()):
            victim = data.draw(st.sampled_from(sequences))
            made.abort(victim)
    while made.busy:
        made.step()
    alone, _ = batch(model, prefix_cache=0)
    for each in sequences:
        if each.ended():
            twin = sequence(each.request.prompt_ids, each.seed, each.request.max_tokens)
            run(alone, twin)
            assert twin.ids == each.ids
            assert twin.logprobs == pytest.approx(each.logprobs, abs=2e-5)
