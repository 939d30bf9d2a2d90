"""OpenAI's dialect: what is honoured, what is refused and how, and that no bytes break it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.errors import ModelServiceError
from rockroll.model_service.openai_chat import (
    DEFAULT_MODEL,
    MAX_MESSAGES,
    Chat,
    completion,
    completion_events,
    error_body,
    error_status,
    parse_chat,
)
from rockroll.model_service.wire import ChatReply, Message

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
        max_tokens=None,
        temperature=None,
        top_p=None,
        seed=None,
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
    message = json.loads(completion("id", 0, "m", reply))["choices"][0]["message"]
    message |= {"tool_calls": None, "function_call": None, "audio": None, "annotations": []}  # as SDKs dump it
    assert parse(messages=[*HI, message, *HI]).messages[1] == Message("assistant", "ls")


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
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0]", "tool calls are not supported"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0]", "tool calls are not supported"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "a string is needed"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got `int`"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "'image_url' is not supported, this model reads text only",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content", "needs its text"),
        ({"n": 2}, "n", "make 2 calls"),
        ({"stop": "END"}, "stop", "not supported yet"),
        ({"stop": ["END"]}, "stop", "not supported yet"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported yet"),
        ({"functions": [{}]}, "functions", "not supported yet"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported yet"),
        ({"presence_penalty": 0.5}, "presence_penalty", "only 0"),
        ({"logprobs": True}, "logprobs", "not given"),
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

_names = st.sampled_from(
    [*sorted(Chat.__struct_fields__), "n", "stop", "tools", "stream_options", "logit_bias", "role"]
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names | st.text(), inner, max_size=4),
    max_leaves=20,
)
_texts = st.text(st.characters(exclude_categories=["Cs"]))
_parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]) | _values, "text": _texts | _values})
_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]) | _values},
    optional={"content": _texts | st.lists(_parts) | _values, "tool_calls": _values},
)
_bodies = st.dictionaries(_names, _values, max_size=6).flatmap(
    lambda rest: st.fixed_dictionaries({"messages": st.lists(_messages, max_size=4) | _values}).map(lambda m: rest | m)
)


def _holds(body: bytes) -> None:
    """Either a Chat with what the wire can carry, or a ModelServiceError that renders as JSON."""
    try:
        chat = parse_chat(body)
    except ModelServiceError as error:
        assert error_status(error) == 400
        assert json.loads(error_body(error))["error"]["message"]
        return
    assert chat.messages and all(isinstance(message.content, str) for message in chat.messages)
    assert {message.role for message in chat.messages} <= {"system", "user", "assistant"}


@given(st.binary())
def test_no_bytes_raise_anything_but_a_refusal(body):
    _holds(body)


@given(_values | _bodies)
def test_no_json_raises_anything_but_a_refusal(value):
    _holds(json.dumps(value).encode())


@given(_bodies.map(lambda body: json.dumps(body).encode()), st.data())
def test_no_damaged_json_raises_anything_but_a_refusal(body, data):
    at = data.draw(st.integers(0, len(body)))
    _holds(body[:at] + data.draw(st.binary(max_size=3)) + body[at + data.draw(st.integers(0, 3)) :])


@given(_texts, st.booleans())
def test_any_text_survives_the_way_there_and_back(text, include_usage):
    chat = parse(messages=[{"role": "user", "content": text}])
    assert chat.messages == [Message("user", text)]
    reply = ChatReply(text=text, finish_reason="length", prompt_tokens=2, completion_tokens=3)
    answer = json.loads(completion("id", 7, "m", reply))
    assert answer["choices"][0]["message"]["content"] == text and answer["usage"]["total_tokens"] == 5
    events = completion_events("id", 7, "m", reply, include_usage=include_usage).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == text
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]] == [None, None, "length"]
    assert ("usage" in chunks[-1] and chunks[-1]["usage"] is not None) == include_usage
