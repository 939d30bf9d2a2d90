"""OpenAI's dialect: what is honoured, what is refused and how, and that no bytes break it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects.call import DEFAULT_MODEL
from rockroll.model_service.dialects.checks import MAX_MESSAGES
from rockroll.model_service.dialects.openai import error_body, error_status
from rockroll.model_service.dialects.openai_chat import CHAT_COMPLETIONS, Chat, parse_chat
from rockroll.model_service.wire import ChatReply, Message, TokenLogprob, Tool, ToolCall
from tests.model_service.speech import any_json, holds, near, read, spoken, streamed, texts

HI = [{"role": "user", "content": "hi"}]


def parse(**fields: Any) -> Chat:
    return parse_chat(json.dumps({"messages": HI, **fields}).encode())


def refused(**fields: Any) -> ModelServiceError:
    with pytest.raises(ModelServiceError) as caught:
        parse(**fields)
    assert error_status(caught.value) == 400
    return caught.value


# ---------------------------------------------------------------------------------------------------------------
# Honoured
# ---------------------------------------------------------------------------------------------------------------


def test_what_is_not_said_stays_unsaid():
    assert parse() == Chat(
        model=DEFAULT_MODEL,
        messages=[Message("user", "hi")],
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        max_tokens=None,
        temperature=None,
        top_p=None,
        stop=[],
        seed=None,
        logprobs=None,
        n=1,
        stream=False,
        include_usage=False,
    )


def test_sampling_options_are_passed_on():
    chat = parse(model="m", max_tokens=5, temperature=0, top_p=1, seed=-7, stream=True)
    assert (chat.model, chat.max_tokens, chat.temperature, chat.top_p, chat.seed) == ("m", 5, 0, 1, -7)
    assert chat.stream and not chat.include_usage
    assert parse(max_completion_tokens=6).max_tokens == 6
    assert parse(max_completion_tokens=6, max_tokens=6).max_tokens == 6
    assert parse(stream=True, stream_options={"include_usage": True}).include_usage


def test_text_parts_are_joined_without_adding_a_byte():
    parts = [{"type": "text", "text": "a\n", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
    assert parse(messages=[{"role": "user", "content": parts}]).messages == [Message("user", "a\nb")]


def test_developer_is_openais_newer_word_for_system():
    assert parse(messages=[{"role": "developer", "content": "x"}, *HI]).messages[0] == Message("system", "x")


def test_an_answer_can_be_sent_back_as_it_came():
    reply = ChatReply(text="ls", finish_reason="stop", prompt_tokens=1, completion_tokens=1)
    message = json.loads(parse().answer("id", 0, [reply]))["choices"][0]["message"]
    message |= {"tool_calls": None, "function_call": None, "audio": None, "annotations": []}  # as SDKs dump it
    assert parse(messages=[*HI, message, *HI]).messages[1] == Message("assistant", "ls")


def test_a_tool_call_can_be_sent_back_as_it_came_and_answered():
    called = ToolCall(id="call_1", name="sh", arguments='{"cmd": "ls"')
    reply = ChatReply(
        text="", reasoning="hm", tool_calls=[called], finish_reason="tool_calls", prompt_tokens=1, completion_tokens=1
    )
    choice = json.loads(parse().answer("id", 0, [reply]))["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "a b"}]}
    assert parse(messages=[*HI, choice["message"], result]).messages[1:] == [
        Message("assistant", "", reasoning="hm", tool_calls=[called]),
        Message("tool", "a b", tool_call_id="call_1"),
    ]


def test_tools_and_the_choice_among_them_are_passed_on():
    schema = {"type": "object", "properties": {"cmd": {"type": "string"}}}
    chat = parse(tools=[{"type": "function", "function": {"name": "sh", "description": "Runs", "parameters": schema}}])
    assert chat.tools == [Tool(name="sh", description="Runs", parameters=schema)]
    assert (chat.tool_choice, chat.parallel_tool_calls) == ("auto", True)
    tools = [{"type": "function", "function": {"name": "sh", "strict": True}}]
    assert parse(tools=tools, tool_choice="required", parallel_tool_calls=False).tool_choice == "required"
    assert not parse(tools=tools, parallel_tool_calls=False).parallel_tool_calls
    assert parse(tools=tools, tool_choice={"type": "function", "function": {"name": "sh"}}).tool_choice == "=sh"


def test_stop_strings_several_completions_and_log_probs_are_passed_on():
    assert parse(stop="END").stop == ["END"] and parse(stop=["a", "b"]).stop == ["a", "b"]
    assert [request.index for request in parse(n=3).requests("id", "box", "token")] == [0, 1, 2]
    assert parse(logprobs=True).logprobs == 0 and parse(logprobs=True, top_logprobs=3).logprobs == 3


def test_log_probs_have_openais_shape():
    said = [TokenLogprob(token="é", bytes=[195, 169], logprob=-0.5, top=[("e", -1.0)])]
    reply = ChatReply(text="é", finish_reason="stop", prompt_tokens=1, completion_tokens=1, logprobs=said)
    content = json.loads(parse().answer("id", 0, [reply]))["choices"][0]["logprobs"]["content"]
    top = [{"token": "e", "logprob": -1.0, "bytes": [101]}]
    assert content == [{"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": top}]


def test_usage_counts_the_prompt_once_and_says_what_of_it_was_cached():
    reply = ChatReply(text="x", finish_reason="stop", prompt_tokens=5, completion_tokens=2, cached_tokens=4)
    usage = json.loads(parse(n=2).answer("id", 0, [reply, reply]))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 4, 9)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 4


def test_fields_that_say_nothing_or_do_not_touch_the_text_are_ignored():
    parse(user="me", metadata={"a": 1}, store=False, parallel_tool_calls=True, service_tier="auto")
    parse(n=1, stop=[], tools=[], tool_choice="auto", logit_bias={}, frequency_penalty=0, presence_penalty=0.0)
    parse(n=None, stop=None, tools=None, logprobs=False, response_format={"type": "text"}, modalities=["text"])


# ---------------------------------------------------------------------------------------------------------------
# Refused
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": None}, "messages", "at least one message"),
        ({"messages": "hi"}, "messages", "expected `array"),
        ({"messages": HI * (MAX_MESSAGES + 1)}, "messages", "at most"),
        ({"messages": ["hi"]}, "messages[0]", "expected `object`"),
        ({"messages": [{"content": "hi"}]}, "messages[0]", "`role`"),
        ({"messages": [*HI, {"role": "robot", "content": "hi"}]}, "messages[1].role", "'robot' is not a known role"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0]", "needs the id of the call"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]", "type function"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0]", "older word"),
        ({"messages": [{"role": "function", "name": "f", "content": "4"}]}, "messages[0]", "older word"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "a string is needed"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got `int`"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "'image_url' is not supported, this model reads text only",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", "needs its text"),
        ({"n": 0}, "n", "at least 1"),
        ({"n": 17}, "n", "at most 16"),
        ({"stop": ""}, "stop", "1 to 1000 characters"),
        ({"stop": ["x"] * 65}, "stop", "at most 64"),
        ({"tools": [{"type": "function"}]}, "tools[0]", "type function"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]", "got 'custom'"),
        ({"tools": [{"function": {"name": "no good"}}]}, "tools[0].function.name", "letters, digits"),
        ({"tools": [{"function": {"name": "a"}}] * 2}, "tools", "given twice"),
        (
            {"tools": [{"function": {"name": "a", "parameters": {"x": 2**70}}}]},
            "tools[0].function.parameters",
            "more than 64 bits",
        ),
        ({"tool_choice": "required"}, "tool_choice", "`tools` has none"),
        ({"tool_choice": "sometimes"}, "tool_choice", "'sometimes'"),
        ({"tool_choice": {"type": "function", "function": {"name": "a"}}}, "tool_choice", "has no 'a'"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "'allowed_tools'"),
        ({"functions": [{}]}, "functions", "older word"),
        ({"function_call": "auto"}, "function_call", "older word"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "only 0"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "only 1"),
        ({"top_k": 20}, "top_k", "not supported"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs", "not supported"),
        ({"enable_thinking": False}, "enable_thinking", "the run says"),
        ({"guided_json": {"type": "object"}}, "guided_json", "not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "only with"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
        ({"response_format": {"type": "json_object"}}, "response_format", "'json_object'"),
        ({"modalities": ["audio"]}, "modalities", "text"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": "5"}, "max_tokens", "got `str`"),
        ({"max_tokens": True}, "max_tokens", "got `bool`"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "send one of them"),
        ({"temperature": 2.5}, "temperature", "between 0 and 2"),
        ({"temperature": -1}, "temperature", "between 0 and 2"),
        ({"top_p": 0}, "top_p", "say temperature 0"),
        ({"top_p": 1.1}, "top_p", "between 0 and 1"),
        ({"seed": 2**63}, "seed", "64-bit"),
        ({"model": 5}, "model", "got `int`"),
        ({"stream": "yes"}, "stream", "got `str`"),
    ],
)
def test_a_refusal_names_the_field_and_what_to_do(fields, param, words):
    error = refused(**fields)
    assert error.fields["param"] == param and words in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize("body", [b"", b"hello", b"{", b'{"messages": [NaN]}', b'"\\ud800"', b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_refused_with_a_sentence(body):
    with pytest.raises(ModelServiceError, match="the body"):
        parse_chat(body)


def test_an_error_has_openais_shape_whatever_its_fields_are():
    error = ModelServiceError("no", status="odd", type=None)
    assert error_status(error) == 500
    assert json.loads(error_body(error)) == {
        "error": {"message": "no", "type": "server_error", "param": None, "code": None}
    }


# ---------------------------------------------------------------------------------------------------------------
# For any input
# ---------------------------------------------------------------------------------------------------------------

FULL = {
    "model": "m",
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "me"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "sh", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ],
    "tools": [{"type": "function", "function": {"name": "sh", "description": "d", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "sh"}},
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "stop": ["x"],
    "n": 2,
    "seed": 1,
    "logprobs": True,
    "top_logprobs": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "text"},
}
_values = any_json(st.sampled_from(sorted(FULL)))


@given(st.binary())
def test_no_bytes_raise_anything_but_a_refusal(body):
    holds(CHAT_COMPLETIONS, body)


@given(_values | near(FULL, _values))
def test_no_json_raises_anything_but_a_refusal(value):
    holds(CHAT_COMPLETIONS, json.dumps(value).encode())


@given(st.data())
def test_no_damaged_json_raises_anything_but_a_refusal(data):
    body = json.dumps(FULL).encode()
    at = data.draw(st.integers(0, len(body)))
    holds(CHAT_COMPLETIONS, body[:at] + data.draw(st.binary(max_size=3)) + body[at + data.draw(st.integers(0, 3)) :])


@given(texts)
def test_any_text_survives_the_way_there_and_back(text):
    chat = parse(messages=[{"role": "user", "content": text}])
    assert chat.messages == [Message("user", text)]
    reply = ChatReply(text=text, finish_reason="length", prompt_tokens=2, completion_tokens=3)
    answer = json.loads(chat.answer("id", 7, [reply]))
    assert answer["choices"][0]["message"]["content"] == text and answer["usage"]["total_tokens"] == 5


@given(st.lists(spoken(), min_size=1, max_size=3), st.booleans())
def test_the_events_joined_are_the_whole_answer(said, include_usage):
    chat = parse(n=len(said), stream=True, stream_options={"include_usage": include_usage})
    whole = json.loads(chat.answer("id", 7, [reply for reply, _ in said]))
    events = read(streamed(chat.events("id", 7), said))
    assert events.pop() == (None, "[DONE]")
    chunks = [chunk for _, chunk in events]
    assert all(
        (chunk["id"], chunk["created"], chunk["object"]) == ("id", 7, "chat.completion.chunk") for chunk in chunks
    )
    if include_usage:
        assert chunks[-1]["choices"] == [] and chunks.pop()["usage"] == whole["usage"]
        assert all(chunk["usage"] is None for chunk in chunks)
    for index, choice in enumerate(whole["choices"]):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        joined: dict[str, Any] = {"role": None, "content": "", "reasoning_content": ""}
        calls: list[dict[str, Any]] = []
        logprobs: list[Any] = []
        for delta in (each["delta"] for each in mine):
            joined["role"] = joined["role"] or delta.get("role")
            joined["content"] += delta.get("content") or ""
            joined["reasoning_content"] += delta.get("reasoning_content") or ""
            for part in delta.get("tool_calls", []):
                if part["index"] == len(calls):
                    calls.append({"id": part["id"], "type": "function", "function": {**part["function"]}})
                else:
                    calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
        for each in mine:
            logprobs += (each["logprobs"] or {"content": []})["content"]
        message = choice["message"]
        assert joined == {
            "role": "assistant",
            "content": message["content"] or "",
            "reasoning_content": message.get("reasoning_content", ""),
        }
        assert calls == message.get("tool_calls", [])
        assert logprobs == (choice["logprobs"] or {"content": []})["content"]
        assert [each["finish_reason"] for each in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
