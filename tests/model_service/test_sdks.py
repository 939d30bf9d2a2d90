"""The vendors' own Python SDKs, unchanged, against every dialect."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest

from rockroll.errors import ModelServiceError
from rockroll.model_service.gateway import box_environment
from rockroll.model_service.relay import OnDelta
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta, TokenLogprob, ToolCall

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
HI: list[Any] = [{"role": "user", "content": "hi"}]
CALLS = [
    ToolCall(id="call_1", name="weather", arguments='{"city": "Oslo"}'),
    ToolCall(id="call_2", name="weather", arguments='{"city": "Rome"}'),
]


async def model(request: ChatRequest, on_delta: OnDelta | None = None) -> ChatReply:
    """Thinks, then calls its tool for two cities, then says what it was told, in pieces where somebody listens."""
    said = on_delta or (lambda delta: None)
    if request.model == "refuse":
        raise ModelServiceError("too long", status=400, code="context_length_exceeded", param="messages")
    if request.model == "break":
        said(Delta(text="Hel"))
        raise ModelServiceError("gone", status=503, type="server_error", code="upstream_lost")
    said(Delta(reasoning="hm"))
    if request.tools and request.messages[-1].role == "user":
        for i, call in enumerate(CALLS):
            said(Delta(tool=i, tool_id=call.id, name=call.name))
            said(Delta(tool=i, arguments=call.arguments[:5]))
            said(Delta(tool=i, arguments=call.arguments[5:]))
        return ChatReply(
            text="",
            reasoning="hm",
            tool_calls=CALLS,
            finish_reason="tool_calls",
            prompt_tokens=9,
            completion_tokens=5,
        )
    tools = [message for message in request.messages if message.role == "tool"]
    told = [f"{message.tool_call_id}={message.content}" for message in tools]
    text = " ".join(told) or request.prompt or request.messages[-1].content
    for word in text.split(" "):
        said(Delta(text=word if text.startswith(word) else f" {word}"))
    logprobs = (
        [TokenLogprob(token=text, bytes=list(text.encode()), logprob=-0.5)] if request.logprobs is not None else None
    )
    return ChatReply(
        text=text, reasoning="hm", finish_reason="stop", prompt_tokens=9, completion_tokens=2, logprobs=logprobs
    )


def settings(port: int, vendor: str) -> Any:
    said = box_environment(port)
    return {"base_url": said[f"{vendor}_BASE_URL"], "api_key": said[f"{vendor}_API_KEY"], "max_retries": 0}


@pytest.fixture
async def port(place, serve) -> int:
    def count(request: ChatRequest) -> int:
        return sum(len(message.content.split()) for message in request.messages)

    await serve(model, count=count)
    return await place.box()


@pytest.fixture
async def gpt(port):
    async with openai.AsyncOpenAI(**settings(port, "OPENAI")) as client:
        yield client


@pytest.fixture
async def claude(port):
    async with anthropic.AsyncAnthropic(**settings(port, "ANTHROPIC")) as client:
        yield client


# ---------------------------------------------------------------------------------------------------------------
# OpenAI
# ---------------------------------------------------------------------------------------------------------------

CHAT_TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}]


async def test_chat_calls_tools_and_takes_their_results(gpt):
    asked = await gpt.chat.completions.create(model="m", messages=HI, tools=CHAT_TOOLS)
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "tool_calls" and message.content is None
    assert [call.function.arguments for call in message.tool_calls] == [call.arguments for call in CALLS]
    results = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in message.tool_calls]
    told = await gpt.chat.completions.create(
        model="m", messages=[*HI, message.model_dump(exclude_none=True), *results], tools=CHAT_TOOLS
    )
    assert told.choices[0].message.content == "call_1=rain call_2=rain"


async def test_chat_streams_and_its_helper_joins_what_came(gpt):
    async with gpt.chat.completions.stream(model="m", messages=HI, tools=CHAT_TOOLS) as stream:
        kinds = [event.type async for event in stream]
        whole = await stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert [call.function.arguments for call in whole.choices[0].message.tool_calls] == [c.arguments for c in CALLS]
    assert whole.choices[0].message.reasoning_content == "hm"


async def test_chat_gives_several_completions_and_log_probs(gpt):
    answer = await gpt.chat.completions.create(model="m", messages=HI, n=2, logprobs=True, top_logprobs=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[1].logprobs.content[0].logprob == -0.5
    assert answer._request_id == answer.id


async def test_completions_answer_and_stream(gpt):
    answer = await gpt.completions.create(model="m", prompt="Once upon a time", logprobs=1)
    assert answer.choices[0].text == "Once upon a time" and answer.choices[0].logprobs.token_logprobs == [-0.5]
    stream = await gpt.completions.create(model="m", prompt="Once upon a time", stream=True)
    pieces = [chunk.choices[0].text async for chunk in stream]
    assert "".join(pieces) == "Once upon a time" and len(pieces) == 5


RESPONSE_TOOLS: list[Any] = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}]


async def test_responses_call_tools_and_take_their_results(gpt):
    asked = await gpt.responses.create(model="m", input="hi", tools=RESPONSE_TOOLS)
    calls = [item for item in asked.output if item.type == "function_call"]
    assert asked.status == "completed" and [json.loads(call.arguments)["city"] for call in calls] == ["Oslo", "Rome"]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"} for call in calls]
    told = await gpt.responses.create(model="m", input=[*HI, *asked.output, *results], tools=RESPONSE_TOOLS)
    assert told.output_text == "call_1=rain call_2=rain" and told.usage.total_tokens == 11


async def test_responses_stream_and_their_helper_joins_what_came(gpt):
    async with gpt.responses.stream(model="m", input="hello there") as stream:
        kinds = [event.type async for event in stream]
        whole = await stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == 2
    assert whole.output_text == "hello there"
    async with gpt.responses.stream(model="m", input="hi", tools=RESPONSE_TOOLS) as stream:
        kinds = [event.type async for event in stream]
        whole = await stream.get_final_response()
    assert kinds.count("response.function_call_arguments.done") == 2
    assert [item.type for item in whole.output] == ["reasoning", "function_call", "function_call"]


async def test_the_blocking_openai_client_works_too(port):
    def ask() -> tuple[Any, ...]:
        with openai.OpenAI(**settings(port, "OPENAI")) as client:
            chunks = client.chat.completions.create(model="m", messages=HI, stream=True)
            events = client.responses.create(model="m", input="hi", stream=True)
            return (
                client.chat.completions.create(model="m", messages=HI).choices[0].message.content,
                "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
                client.responses.create(model="m", input="hi").output_text,
                "".join(event.delta for event in events if event.type == "response.output_text.delta"),
                client.completions.create(model="m", prompt="hi").choices[0].text,
            )

    assert await asyncio.to_thread(ask) == ("hi",) * 5


async def test_openais_errors_are_its_typed_exceptions(gpt):
    for ask in (
        gpt.chat.completions.create(model="refuse", messages=HI),
        gpt.chat.completions.create(model="refuse", messages=HI, stream=True),
        gpt.responses.create(model="refuse", input="hi"),
        gpt.completions.create(model="refuse", prompt="hi", stream=True),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await ask
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="none is stored"):
        await gpt.responses.create(model="m", input="hi", previous_response_id="resp_0")
    with pytest.raises(openai.NotFoundError):
        await gpt.embeddings.create(model="m", input="hi")


async def test_openais_errors_in_mid_stream_are_raised_there(gpt):
    stream = await gpt.chat.completions.create(model="break", messages=HI, stream=True)
    with pytest.raises(openai.APIError, match="gone"):
        _ = [chunk async for chunk in stream]
    stream = await gpt.responses.create(model="break", input="hi", stream=True)
    events = [event async for event in stream]
    assert events[-2].type == "error" and events[-2].message == "gone"
    assert events[-1].type == "response.failed" and events[-1].response.error.message == "gone"


# ---------------------------------------------------------------------------------------------------------------
# Anthropic
# ---------------------------------------------------------------------------------------------------------------

TOOLS: list[Any] = [{"name": "weather", "input_schema": SCHEMA}]
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


async def test_messages_call_tools_and_take_their_results(claude):
    asked = await claude.messages.create(model="m", max_tokens=2000, messages=HI, tools=TOOLS, thinking=THINKING)
    assert asked.stop_reason == "tool_use"
    assert [block.type for block in asked.content] == ["thinking", "tool_use", "tool_use"]
    assert [block.input for block in asked.content[1:]] == [{"city": "Oslo"}, {"city": "Rome"}]
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": "rain"} for block in asked.content[1:]]
    history = [*HI, {"role": "assistant", "content": asked.content}, {"role": "user", "content": results}]
    told = await claude.messages.create(model="m", max_tokens=2000, messages=history, tools=TOOLS)
    assert [block.text for block in told.content] == ["call_1=rain call_2=rain"]
    assert told.stop_reason == "end_turn" and told.usage.output_tokens == 2


async def test_messages_stream_and_their_helper_joins_what_came(claude):
    async with claude.messages.stream(
        model="m", max_tokens=2000, messages=HI, tools=TOOLS, thinking=THINKING
    ) as stream:
        kinds = [event.type async for event in stream]
        whole = await stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop" and kinds.count("content_block_stop") == 3
    assert [block.input for block in whole.content[1:]] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert whole.stop_reason == "tool_use" and whole.usage.input_tokens == 9
    async with claude.messages.stream(model="m", max_tokens=9, messages=HI) as stream:
        assert [text async for text in stream.text_stream] == ["hi"]


async def test_tokens_are_counted(claude):
    counted = await claude.messages.count_tokens(model="m", system="Be brief.", messages=HI, tools=TOOLS)
    assert counted.input_tokens == 3


async def test_where_nothing_counts_a_count_is_refused(place, serve):
    await serve()
    async with anthropic.AsyncAnthropic(**settings(await place.box(), "ANTHROPIC")) as client:
        with pytest.raises(anthropic.NotFoundError, match="does not count"):
            await client.messages.count_tokens(model="m", messages=HI)


async def test_the_blocking_anthropic_client_works_too(port):
    def ask() -> tuple[Any, ...]:
        with anthropic.Anthropic(**settings(port, "ANTHROPIC")) as client:
            with client.messages.stream(model="m", max_tokens=9, messages=HI) as stream:
                streamed = "".join(stream.text_stream)
            return client.messages.create(model="m", max_tokens=9, messages=HI).content[0].text, streamed

    assert await asyncio.to_thread(ask) == ("hi", "hi")


async def test_each_vendor_sees_the_models_in_its_own_shape(gpt, claude):
    assert [model.id async for model in gpt.models.list()] == ["tiny"]
    assert [model.display_name async for model in claude.models.list()] == ["tiny"]
    assert (await claude.models.retrieve("tiny")).created_at.year > 2000
    with pytest.raises(anthropic.NotFoundError, match="served: tiny"):
        await claude.models.retrieve("claude")


async def test_anthropics_errors_are_its_typed_exceptions(claude):
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        await claude.messages.create(model="refuse", max_tokens=9, messages=HI)
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        await claude.messages.create(model="refuse", max_tokens=9, messages=HI, stream=True)
    with pytest.raises(anthropic.RequestTooLargeError):
        await claude.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x" * 2**23}])
    with pytest.raises(anthropic.BadRequestError, match="image"):
        image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
        await claude.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": [image]}])


async def test_anthropics_errors_in_mid_stream_are_raised_there(claude):
    stream = await claude.messages.create(model="break", max_tokens=9, messages=HI, stream=True)
    with pytest.raises(anthropic.APIStatusError, match="gone"):
        _ = [event async for event in stream]


async def test_without_a_route_each_vendors_client_raises_that_it_is_unavailable(place):
    port = await place.box(token=None)
    async with openai.AsyncOpenAI(**settings(port, "OPENAI")) as gpt:
        with pytest.raises(openai.InternalServerError, match="while an episode runs"):
            await gpt.responses.create(model="m", input="hi")
    async with anthropic.AsyncAnthropic(**settings(port, "ANTHROPIC")) as claude:
        with pytest.raises(anthropic.APIStatusError, match="while an episode runs"):
            await claude.messages.create(model="m", max_tokens=9, messages=HI)
