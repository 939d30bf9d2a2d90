"""Anthropic's messages: what is honoured, what is refused and how, and that no bytes break it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects.anthropic import error_body
from rockroll.model_service.dialects.anthropic_messages import COUNT_TOKENS, MESSAGES, Asked, parse_count
from rockroll.model_service.wire import ChatReply, Message, Tool, ToolCall
from tests.model_service.speech import any_json, call, holds, near, read, spoken, streamed

HI = {"role": "user", "content": "hi"}
TOOL = {"name": "sh", "description": "Runs", "input_schema": {"type": "object"}}


def parse(**fields: Any) -> Asked:
    asked = call(MESSAGES, {"model": "m", "max_tokens": 5, "messages": [HI], **fields})
    assert isinstance(asked, Asked)
    return asked


def reply(text: str = "", **fields: Any) -> ChatReply:
    return ChatReply(**{"text": text, "finish_reason": "stop", "prompt_tokens": 9, "completion_tokens": 2, **fields})


# ---------------------------------------------------------------------------------------------------------------
# Honoured
# ---------------------------------------------------------------------------------------------------------------


def test_sampling_options_are_passed_on():
    asked = parse(temperature=0.5, top_p=0.9, stop_sequences=["END"], stream=True)
    assert (asked.model, asked.max_tokens, asked.temperature, asked.top_p) == ("m", 5, 0.5, 0.9)
    assert asked.stop == ["END"] and asked.stream and asked.messages == [Message("user", "hi")]


@pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]])
def test_the_system_prompt_comes_first_whether_text_or_blocks(system):
    assert parse(system=system).messages == [Message("system", "Be brief."), Message("user", "hi")]


def test_a_system_message_may_stand_in_the_middle():
    assert parse(messages=[HI, {"role": "system", "content": "x"}]).messages[1] == Message("system", "x")


def test_tools_and_the_choice_among_them_are_passed_on():
    asked = parse(tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert asked.tools == [Tool(name="sh", description="Runs", parameters={"type": "object"})]
    assert asked.tool_choice == "required" and not asked.parallel_tool_calls
    assert parse(tools=[TOOL], tool_choice={"type": "tool", "name": "sh"}).tool_choice == "=sh"
    assert parse(tools=[TOOL], tool_choice={"type": "none"}).tool_choice == "none"
    assert parse(tools=[TOOL]).tool_choice == "auto" and parse(tools=[TOOL]).parallel_tool_calls


def test_an_answer_can_be_sent_back_as_it_came_with_the_tools_results():
    calls = [ToolCall(id="a", name="sh", arguments='{"cmd": "ls"}'), ToolCall(id="b", name="sh", arguments='{"cmd":')]
    said = reply("So:", reasoning="hm", tool_calls=calls, finish_reason="tool_calls")
    answer = json.loads(parse(thinking={"type": "enabled", "budget_tokens": 1024}).answer("id", 0, [said]))
    assert answer["stop_reason"] == "tool_use"
    assert [block["type"] for block in answer["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert answer["content"][2]["input"] == {"cmd": "ls"} and answer["content"][3]["input"] == {
        "INVALID_JSON": '{"cmd":'
    }
    results = [
        {"type": "tool_result", "tool_use_id": "a", "content": "x", "cache_control": {"type": "ephemeral"}},
        {"type": "tool_result", "tool_use_id": "b", "is_error": True, "content": [{"type": "text", "text": "y"}]},
        {"type": "text", "text": "Go "},
        {"type": "text", "text": "on."},
    ]
    back = parse(
        messages=[HI, {"role": "assistant", "content": answer["content"]}, {"role": "user", "content": results}]
    )
    first, *rest = back.messages[1:]
    assert (first.content, first.reasoning) == ("So:", "hm")
    assert [json.loads(each.arguments) for each in first.tool_calls[:1]] == [{"cmd": "ls"}]
    assert first.tool_calls[1] == calls[1]
    assert rest == [
        Message("tool", "x", tool_call_id="a"),
        Message("tool", "y", tool_call_id="b"),
        Message("user", "Go on."),
    ]


def test_thoughts_are_shown_to_who_asks_for_them():
    for asked, kinds in [
        (parse(), ["text"]),
        (parse(thinking={"type": "disabled"}), ["text"]),
        (parse(thinking={"type": "adaptive"}), ["thinking", "text"]),
    ]:
        content = json.loads(asked.answer("id", 0, [reply("x", reasoning="hm")]))["content"]
        assert [block["type"] for block in content] == kinds


@pytest.mark.parametrize(
    ("said", "reason", "sequence"),
    [
        ({}, "end_turn", None),
        ({"stop": "END"}, "stop_sequence", "END"),
        ({"finish_reason": "length"}, "max_tokens", None),
        ({"finish_reason": "tool_calls"}, "tool_use", None),
    ],
)
def test_why_it_stopped_has_anthropics_words(said, reason, sequence):
    answer = json.loads(parse().answer("id", 0, [reply("x", **said)]))
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)


def test_usage_counts_what_was_cached_apart():
    usage = json.loads(parse().answer("id", 0, [reply("x", cached_tokens=7)]))["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (2, 7, 2)


def test_a_count_needs_no_max_tokens():
    assert parse_count(json.dumps({"messages": [HI], "tools": [TOOL]}).encode()).tools
    assert COUNT_TOKENS.count is not None and json.loads(COUNT_TOKENS.count(7)) == {"input_tokens": 7}


def test_fields_that_do_not_touch_the_text_are_ignored():
    parse(metadata={"user_id": "x"}, service_tier="auto", output_config={"effort": "high"}, inference_geo="eu")
    parse(context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}, mcp_servers=[])


# ---------------------------------------------------------------------------------------------------------------
# Refused
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens: field required"),
        ({"max_tokens": 0}, "max_tokens: at least 1"),
        ({"messages": []}, "messages: at least one"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: 'robot'"),
        ({"messages": [HI, {"role": "assistant", "content": "so"}]}, "must end with a user message"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content: at least one block"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "'image' is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document' is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: field required"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id: field required"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}, HI]}, "needs its id and name"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": 5}]}
                ]
            },
            "input: an object",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'web_search_20250305'"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash_20250124'"),
        ({"tool_choice": {"type": "tool", "name": "sh"}}, "`tools` has no 'sh'"),
        ({"tool_choice": {"type": "any"}}, "`tools` has none"),
        ({"tool_choice": {"type": "odd"}}, "got 'odd'"),
        ({"temperature": 1.5}, "temperature: between 0 and 1"),
        ({"top_k": 5}, "top_k: not supported"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format: not supported"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "clear_tool_uses_20250919"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers: not supported"),
    ],
)
def test_a_refusal_says_which_field_in_anthropics_shape(fields, words):
    with pytest.raises(ModelServiceError) as caught:
        parse(**fields)
    body = json.loads(error_body(caught.value))
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert words in body["error"]["message"] and len(body["error"]["message"]) < 300


@pytest.mark.parametrize(
    ("status", "type"),
    [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_each_status_has_anthropics_type(status, type):
    error = ModelServiceError("no", status=status, type="whatever", code="whatever")
    assert json.loads(error_body(error))["error"] == {"type": type, "message": "no"}


def test_a_context_that_is_too_long_is_said_in_the_words_that_clients_know():
    error = ModelServiceError("9 > 8", status=400, code="context_length_exceeded")
    assert json.loads(error_body(error))["error"]["message"] == "prompt is too long: 9 > 8"


# ---------------------------------------------------------------------------------------------------------------
# For any input
# ---------------------------------------------------------------------------------------------------------------

FULL = {
    "model": "m",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "so"},
                {"type": "tool_use", "id": "a", "name": "sh", "input": {"cmd": "ls"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "tool", "name": "sh", "disable_parallel_tool_use": True},
    "stop_sequences": ["x"],
    "temperature": 0.5,
    "top_p": 0.5,
    "stream": True,
    "thinking": {"type": "enabled", "budget_tokens": 5},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
}
_values = any_json(st.sampled_from(sorted(FULL)))


@given(st.binary())
def test_no_bytes_raise_anything_but_a_refusal(body):
    holds(MESSAGES, body)


@given(_values | near(FULL, _values))
def test_no_json_raises_anything_but_a_refusal(value):
    holds(MESSAGES, json.dumps(value).encode())
    holds(COUNT_TOKENS, json.dumps(value).encode())


@given(spoken(), st.booleans())
def test_the_events_joined_are_the_whole_answer(said, thinking):
    asked = parse(stream=True, thinking={"type": "enabled" if thinking else "disabled"})
    whole = json.loads(asked.answer("id", 7, [said[0]]))
    events = read(streamed(asked.events("id", 7), [said]))
    assert all(event == data["type"] for event, data in events)
    message: dict[str, Any] = {}
    written = ""
    for kind, data in events:
        if kind == "message_start":
            message = data["message"]
        elif kind == "content_block_start":
            assert data["index"] == len(message["content"])
            message["content"].append(data["content_block"])
            written = ""
        elif kind == "content_block_delta":
            delta, block = data["delta"], message["content"][data["index"]]
            if delta["type"] == "input_json_delta":
                written += delta["partial_json"]
            for key in ("text", "thinking", "signature"):
                if key in delta:
                    block[key] += delta[key]
        elif kind == "content_block_stop" and written:
            message["content"][data["index"]]["input"] = json.loads(written)
        elif kind == "message_delta":
            message |= data["delta"]
            message["usage"] |= data["usage"]
    assert events[-1] == ("message_stop", {"type": "message_stop"})
    assert message == whole
