"""What any engine must keep, as checks that run against a live one.

In: a `Subject`: an engine, with a prompt and folders that suit its model. Out: AssertionError with a sentence, for the
first promise broken. `PROMISES` lists them all; a test suite runs each under its name, `check` runs all.
Leaves starting and closing the engine to the caller.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from rockroll.engine.api import Engine, GenerateRequest, Generation, Piece
from rockroll.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine under test. Every promise leaves it with the weights of `weights`."""

    engine: Engine
    prompt: list[int]
    """A prompt of 20 or more ids, at most a quarter of the context, after which the model is unsure what comes."""
    weights: str
    """The folder that the engine started from."""
    other_weights: str
    """A folder of the same shapes with other weights."""
    tolerance: float = 1e-4
    """How far float noise may move a log-prob."""

    async def ask(self, **changes: Any) -> Generation:
        wanted: dict[str, Any] = {
            "id": "c",
            "prompt_ids": self.prompt,
            "max_tokens": 12,
            "temperature": 1.0,
            "seed": 7,
            "stop_ids": [],
        }
        return await self.engine.generate(GenerateRequest(**(wanted | changes)))


async def lists_of_a_generation_are_equally_long(subject: Subject) -> None:
    got = await subject.ask()
    lengths = {len(got.token_ids), len(got.logprobs), len(got.versions)}
    assert lengths == {12} and got.finish_reason == "length", f"12 tokens wanted, got {got}"
    assert all(math.isfinite(logprob) and logprob <= 0 for logprob in got.logprobs), f"not log-probs: {got.logprobs}"


async def greedy_takes_the_most_probable_token(subject: Subject) -> None:
    greedy = await subject.ask(temperature=0.0, seed=1)
    again = await subject.ask(temperature=0.0, seed=2)
    assert greedy.token_ids == again.token_ids, "greedy answers differ by seed"
    full = await subject.engine.logprobs(subject.prompt + greedy.token_ids)
    sampled = await asyncio.gather(*(subject.ask(max_tokens=1, seed=seed) for seed in range(8)))
    assert all(s.logprobs[0] <= greedy.logprobs[0] + subject.tolerance for s in sampled), "a sample beat greedy"
    _close(subject, full[-12:], greedy.logprobs, "greedy log-probs are those at temperature 1")


async def logprobs_are_those_of_a_full_forward(subject: Subject) -> None:
    got = await asyncio.gather(*(subject.ask(seed=seed, max_tokens=3 + seed) for seed in range(6)))
    for generation in got:
        full = await subject.engine.logprobs(subject.prompt + generation.token_ids)
        assert len(full) == len(subject.prompt) + len(generation.token_ids) - 1
        _close(subject, full[-len(generation.token_ids) :], generation.logprobs, "sampled log-probs")


async def logprobs_count_the_temperature(subject: Subject) -> None:
    """At temperature T two tokens' log-probs are 1/T times as far apart as at 1, and the likelier gains."""
    temperature = 0.5
    got = await asyncio.gather(*(subject.ask(temperature=temperature, max_tokens=1, seed=s) for s in range(32)))
    cold = {generation.token_ids[0]: generation.logprobs[0] for generation in got}
    assert len(cold) > 1, "32 samples were one token: give a prompt after which the model is less sure"
    warm = {token: (await subject.engine.logprobs([*subject.prompt, token]))[-1] for token in cold}
    first, *others = sorted(cold, key=cold.__getitem__, reverse=True)
    for token in others:
        apart, wanted = cold[first] - cold[token], (warm[first] - warm[token]) / temperature
        assert abs(apart - wanted) <= 4 * subject.tolerance, f"{apart} apart at {temperature}; {wanted} wanted"
    assert sum(math.exp(logprob) for logprob in cold.values()) <= 1 + subject.tolerance, "more than all probability"


async def a_seed_names_the_draws_in_any_batch(subject: Subject) -> None:
    alone = await subject.ask(seed=11, max_tokens=16)
    crowd = [subject.ask(seed=100 + i, prompt_ids=subject.prompt[i:], max_tokens=10) for i in range(8)]
    together = await asyncio.gather(subject.ask(seed=11, max_tokens=16), *crowd)
    assert together[0].token_ids == alone.token_ids, "another batch, other tokens"
    _close(subject, together[0].logprobs, alone.logprobs, "log-probs in another batch")
    others = await asyncio.gather(*(subject.ask(seed=seed) for seed in range(20, 28)))
    assert len({tuple(other.token_ids) for other in others}) > 1, "eight seeds, one answer"


async def requests_without_a_seed_differ(subject: Subject) -> None:
    got = await asyncio.gather(*(subject.ask(seed=None, max_tokens=16) for _ in range(8)))
    assert len({tuple(generation.token_ids) for generation in got}) > 1, "eight requests without a seed, one answer"


async def a_stop_token_ends_and_is_kept(subject: Subject) -> None:
    free = await subject.ask(seed=3, max_tokens=16)
    stop = free.token_ids[5]
    first = free.token_ids.index(stop)
    got = await subject.ask(seed=3, max_tokens=16, stop_ids=[stop])
    assert got.token_ids == free.token_ids[: first + 1], f"{got.token_ids} after stop token {stop}"
    assert got.finish_reason == "stop" and len(got.logprobs) == first + 1


async def a_small_top_p_is_greedy(subject: Subject) -> None:
    greedy = await subject.ask(temperature=0.0)
    got = await subject.ask(top_p=1e-6)
    assert got.token_ids == greedy.token_ids, "top_p 1e-6 left a choice"
    assert all(abs(logprob) < subject.tolerance for logprob in got.logprobs), "what is certain has log-prob 0"


async def a_next_turn_continues_exactly(subject: Subject) -> None:
    """A prompt that grows by what was sampled, as a conversation's does, whatever the engine kept of the first turn."""
    ids = list(subject.prompt)
    for turn in range(3):
        got = await subject.ask(prompt_ids=ids, seed=turn, max_tokens=6)
        ids += got.token_ids
        full = await subject.engine.logprobs(ids)
        _close(subject, full[-6:], got.logprobs, f"log-probs of turn {turn + 1}")
        ids += subject.prompt[turn : turn + 3]


async def the_pieces_are_the_answer(subject: Subject) -> None:
    """Each token is told once, in order, before the call returns; several at once do not mix."""
    alone = await subject.ask(seed=9, max_tokens=16)
    told: dict[int, list[Piece]] = {seed: [] for seed in (9, 10, 11)}
    wanted = {"prompt_ids": subject.prompt, "max_tokens": 16, "temperature": 1.0}
    requests = {seed: GenerateRequest(id=f"s{seed}", seed=seed, **wanted) for seed in told}
    got = await asyncio.gather(*(subject.engine.generate(requests[seed], told[seed].append) for seed in told))
    for whole, pieces in zip(got, told.values(), strict=True):
        starts = [piece.start for piece in pieces]
        lengths = [len(piece.token_ids) for piece in pieces]
        assert starts == [sum(lengths[:i]) for i in range(len(lengths))], (
            f"pieces of {lengths} tokens begin at {starts}"
        )
        assert [i for piece in pieces for i in piece.token_ids] == whole.token_ids, "the pieces are other tokens"
        assert [x for piece in pieces for x in piece.logprobs] == whole.logprobs, "the pieces have other log-probs"
        assert [v for piece in pieces for v in piece.versions] == whole.versions, "the pieces have other versions"
        assert len(pieces) > 1, "16 tokens came in one piece: that is no stream"
    assert got[0].token_ids == alone.token_ids, "who listens gets another answer"


async def a_stream_that_is_left_ends(subject: Subject) -> None:
    """Cancelled after its first token: nothing is told any more, and its place is free."""
    info = await subject.engine.info()
    first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    told: list[Piece] = []

    def listen(piece: Piece) -> None:
        told.append(piece)
        if not first.done():
            first.set_result(None)

    room = info.context_length - len(subject.prompt)
    request = GenerateRequest(id="left", prompt_ids=subject.prompt, max_tokens=room, seed=1)
    left = asyncio.ensure_future(subject.engine.generate(request, listen))
    await first
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    assert left.cancelled(), "a stream that was cancelled goes on"
    count = len(told)
    await subject.ask(max_tokens=8)
    assert len(told) == count, "tokens were told after the call had ended"


async def a_cancelled_request_leaves_the_others_alone(subject: Subject) -> None:
    alone = await subject.ask(seed=5)
    info = await subject.engine.info()
    long = [
        asyncio.ensure_future(subject.ask(seed=i, max_tokens=info.context_length - len(subject.prompt)))
        for i in range(4)
    ]
    kept = asyncio.ensure_future(subject.ask(seed=5))
    await asyncio.sleep(0)
    for request in long:
        request.cancel()
    assert (await kept).token_ids == alone.token_ids, "cancelling others changed this answer"
    done = await asyncio.gather(*long, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in done), f"not cancelled: {done}"


async def new_weights_are_proved_and_used(subject: Subject) -> None:
    before = await subject.engine.logprobs(subject.prompt)
    version = (await subject.engine.info()).version
    try:
        loaded = await subject.engine.load(subject.other_weights, version + 1)
        assert loaded.version == version + 1 == (await subject.engine.info()).version
        assert loaded.tensors > 0 and loaded.digest, f"no proof: {loaded}"
        other = await subject.engine.logprobs(subject.prompt)
        assert max(abs(a - b) for a, b in zip(before, other, strict=True)) > 100 * subject.tolerance, (
            "old weights answer"
        )
        got = await subject.ask()
        assert got.versions == [version + 1] * 12, f"versions {got.versions}"
        full = await subject.engine.logprobs(subject.prompt + got.token_ids)
        _close(subject, full[-12:], got.logprobs, "log-probs after a load: something older was reused")
    finally:
        back = await subject.engine.load(subject.weights, version + 2)
    assert back.digest != loaded.digest, "other weights, one digest"
    _close(subject, await subject.engine.logprobs(subject.prompt), before, "the first weights again")


async def weights_may_change_under_way(subject: Subject) -> None:
    version = (await subject.engine.info()).version
    room = (await subject.engine.info()).context_length - len(subject.prompt)
    running = [asyncio.ensure_future(subject.ask(seed=i, max_tokens=room)) for i in range(3)]
    await subject.ask(max_tokens=4)  # they have begun by the time this one ends
    await subject.engine.load(subject.weights, version + 1)
    for generation in await asyncio.gather(*running):
        assert len(generation.token_ids) == room, "a load cut a request short"
        assert generation.versions == sorted(generation.versions), "versions go back"
        assert set(generation.versions) <= {version, version + 1}


async def what_is_to_begin_anew_has_one_version(subject: Subject) -> None:
    """Its answer is what the new weights say to the same seed, to one who listens too, and what was thrown is told."""
    version = (await subject.engine.info()).version
    room = (await subject.engine.info()).context_length - len(subject.prompt)
    told: list[Piece] = []
    wanted = {"prompt_ids": subject.prompt, "max_tokens": room, "temperature": 1.0, "anew": True}
    heard = GenerateRequest(id="heard", seed=3, **wanted)
    running = [asyncio.ensure_future(subject.engine.generate(heard, told.append))]
    running += [asyncio.ensure_future(subject.ask(seed=i, max_tokens=room, anew=True)) for i in range(3)]
    kept = asyncio.ensure_future(subject.ask(seed=1, max_tokens=room))
    await subject.ask(max_tokens=4)  # they have begun by the time this one ends
    try:
        await subject.engine.load(subject.other_weights, version + 1)
        got = await asyncio.gather(*running)
        fresh = await asyncio.gather(*(subject.ask(seed=i, max_tokens=room) for i in (3, 0, 1, 2)))
        assert len((await kept).versions) == room, "who did not ask for it was cut short"
    finally:
        await subject.engine.load(subject.weights, version + 2)
    for one, other in zip(got, fresh, strict=True):
        assert set(one.versions) == {version + 1}, f"versions {sorted(set(one.versions))} in an answer that began anew"
        assert one.token_ids == other.token_ids, "an answer that began anew is not that of the new weights"
        _close(subject, other.logprobs, one.logprobs, "log-probs of an answer that began anew")
        assert one.thrown < room, f"{one.thrown} tokens thrown away"
    assert sum(one.thrown for one in got), "nothing was thrown away"
    last = max(number for number, piece in enumerate(told) if piece.start == 0)
    void, valid = told[:last], told[last:]
    assert sum(len(piece.token_ids) for piece in void) == got[0].thrown, "it began anew, and was not told so"
    assert [i for piece in valid for i in piece.token_ids] == got[0].token_ids, "the pieces are other tokens"


async def a_bad_delivery_changes_nothing(subject: Subject) -> None:
    before = await subject.engine.logprobs(subject.prompt)
    version = (await subject.engine.info()).version
    await _refused(subject.engine.load(subject.weights + "-that-is-not-there", version + 1))
    assert (await subject.engine.info()).version == version
    assert await subject.engine.logprobs(subject.prompt) == before


async def what_cannot_be_is_refused_with_a_sentence(subject: Subject) -> None:
    info = await subject.engine.info()
    await _refused(subject.ask(prompt_ids=[]))
    await _refused(subject.ask(prompt_ids=[info.vocab_size]))
    await _refused(subject.ask(prompt_ids=[-1]))
    await _refused(subject.ask(max_tokens=0))
    await _refused(subject.ask(temperature=-1.0))
    await _refused(subject.ask(top_p=0.0))
    await _refused(subject.engine.logprobs([]))
    error = await _refused(subject.ask(max_tokens=info.context_length))
    assert str(info.context_length) in str(error), f"the context is not named: {error}"
    assert error.fields.get("code") == "context_length_exceeded", f"fields {error.fields}"
    assert (await subject.ask()).finish_reason == "length", "a refusal broke the engine"


async def the_context_can_be_filled(subject: Subject) -> None:
    info = await subject.engine.info()
    prompt = (subject.prompt * (info.context_length // len(subject.prompt) + 1))[: info.context_length - 2]
    got = await subject.ask(prompt_ids=prompt, max_tokens=2)
    full = await subject.engine.logprobs(prompt + got.token_ids)
    _close(subject, full[-2:], got.logprobs, "log-probs at the end of the context")


Promise = Callable[[Subject], Awaitable[None]]
PROMISES: tuple[Promise, ...] = (
    lists_of_a_generation_are_equally_long,
    greedy_takes_the_most_probable_token,
    logprobs_are_those_of_a_full_forward,
    logprobs_count_the_temperature,
    a_seed_names_the_draws_in_any_batch,
    requests_without_a_seed_differ,
    a_stop_token_ends_and_is_kept,
    a_small_top_p_is_greedy,
    a_next_turn_continues_exactly,
    the_pieces_are_the_answer,
    a_stream_that_is_left_ends,
    a_cancelled_request_leaves_the_others_alone,
    new_weights_are_proved_and_used,
    weights_may_change_under_way,
    what_is_to_begin_anew_has_one_version,
    a_bad_delivery_changes_nothing,
    what_cannot_be_is_refused_with_a_sentence,
    the_context_can_be_filled,
)


async def check(subject: Subject) -> None:
    """Every promise in turn."""
    for promise in PROMISES:
        await promise(subject)


def _close(subject: Subject, wanted: list[float], got: list[float], what: str) -> None:
    apart = max(abs(a - b) for a, b in zip(wanted, got, strict=True))
    assert apart <= subject.tolerance, f"{what}: {apart:.2e} apart, {subject.tolerance:.0e} allowed"


async def _refused(work: Awaitable[Any]) -> EngineError:
    try:
        got = await work
    except EngineError as error:
        assert len(str(error)) > 20, f"no sentence: {error}"
        return error
    raise AssertionError(f"accepted what cannot be: {got}")
