"""What an episode's calls may use up, and who is told when it is used up."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from rockroll.errors import ModelServiceError, UsageError
from rockroll.model_service.budget import Budget, Over, Spent
from rockroll.model_service.wire import ChatReply


def test_the_account_refuses_what_is_over_and_names_the_bound():
    for limit, spend in (
        ("calls", lambda spent: spent.begin(2, 0)),
        ("body_bytes", lambda spent: spent.begin(1, 2)),
        ("prompt_tokens", lambda spent: spent.answered(2, 0)),
        ("completion_tokens", lambda spent: spent.answered(0, 2)),
    ):
        spent = Spent(Budget(**{limit: 2}), 0)
        spent.check(1, 1, 0)
        spend(spent)
        with pytest.raises(ModelServiceError, match=f"budget {limit}") as caught:
            spent.check(1, 1, 0)
        assert caught.value.fields["limit"] == limit
    spent = Spent(Budget(seconds=5), 100)
    spent.check(1, 0, 105)
    with pytest.raises(ModelServiceError, match="budget seconds"):
        spent.check(1, 0, 105.1)


def test_a_bound_below_zero_is_refused():
    with pytest.raises(UsageError, match="budget calls: at least 0"):
        Budget(calls=-1)


async def test_the_last_call_is_answered_and_the_next_is_the_vendors_rate_error_that_no_sdk_repeats(place, serve):
    told: list[Over] = []
    await serve(on_over=told.append)
    port = await place.box(calls=2)
    requests = 0

    async def count(_: Any) -> None:
        nonlocal requests
        requests += 1

    http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]})
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", http_client=http) as sdk:
        for _ in range(2):
            await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        for _ in range(2):
            with pytest.raises(openai.RateLimitError, match="2 calls of the model"):
                await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert requests == 4
    async with asyncio.timeout(5):
        while not told:
            await place.get("/models")
    assert [(over.sandbox, over.token, over.limit) for over in told] == [("box", "token", "calls")]


async def test_a_conversation_over_its_tokens_is_the_vendors_context_error(place, serve):
    await serve()
    await place.box(prompt_tokens=3)
    assert (await place.say()).status == 200
    answer = await place.say()
    assert answer.status == 400 and answer.error["code"] == "context_length_exceeded"
    async with place.http.post(place.url("/messages"), json={"messages": [], "max_tokens": 1}) as response:
        assert response.status == 400


async def test_an_answer_is_cut_to_what_is_left(place, serve):
    asked: list[int | None] = []

    async def handler(request: Any, on_delta: Any) -> ChatReply:
        asked.append(request.max_tokens)
        return ChatReply(text="x", finish_reason="length", prompt_tokens=1, completion_tokens=6)

    await serve(handler)
    await place.box(completion_tokens=10)
    for most in (None, 100):
        await place.say(max_tokens=most)
    assert asked == [10, 4]
    assert (await place.say()).status == 429


async def test_bodies_and_seconds_are_counted(place, serve):
    await serve()
    await place.box("bytes", body_bytes=1000)
    assert (await place.say("x" * 500, "bytes")).status == 200
    assert (await place.say("x" * 500, "bytes")).error["code"] == "context_length_exceeded"
    await place.box("seconds", seconds=0)
    await asyncio.sleep(0.01)  # the loop's clock goes by milliseconds
    assert (await place.say(sandbox="seconds")).status == 429


async def test_calls_at_once_may_have_a_bound_of_their_own(place, serve, held):
    await serve(held)
    await place.box(concurrent=2)
    calls = [asyncio.create_task(place.say()) for _ in range(2)]
    await held.until(lambda: len(held.requests) == 2)
    refused = await place.say()
    assert refused.status == 429 and "may have 2 calls under way" in refused.error["message"]
    held.go.set()
    assert {(await call).status for call in calls} == {200}
    assert (await place.say()).status == 200


async def test_a_failed_call_is_none_and_a_new_route_has_a_budget_of_its_own(place, serve, speaking):
    await serve(speaking)
    await place.box(token="one", calls=1)
    await speaking.say(ModelServiceError("no", status=500))

    async def status() -> int:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        # a kept connection would be closed by the next route
        return (await place.post(body, headers={"Connection": "close"})).status

    assert await status() == 500
    assert await status() == 500  # not 429
    place.gateway.route("box", place.address, "two", Budget(calls=0))
    assert await status() == 429
    place.gateway.route("box", place.address, "three")
    assert await status() == 500
