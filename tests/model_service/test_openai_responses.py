"""OpenAI's responses: what is honoured, what is refused and how, and that no bytes break it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects.openai import error_status
from rockroll.model_service.dialects.openai_responses import RESPONSES, Asked
from rockroll.model_service.wire import ChatReply, Delta, Message, TokenLogprob, Tool, ToolCall
from tests.model_service.speech import any_json, call, holds, near, read, spoken, streamed

TOOL = {"type": "function", "name": "sh", "description": "Runs", "parameters": {"type": "object"}, "strict": False}


def parse(**fields: Any) -> Asked:
    asked = call(RESPONSES, {"model": "m", "input": "hi", **fields})
    assert isinstance(asked, Asked)
    return asked


def reply(text: str = "", **fields: Any) -> ChatReply:
    return ChatReply(**{"text": text, "finish_reason": "stop", "prompt_tokens": 9, "completion_tokens": 2, **fields})


def answer(asked: Asked, said: ChatReply) -> dict[str, Any]:
    return json.loads(asked.answer("resp_1", 7, [said]))


# ---------------------------------------------------------------------------------------------------------------
# Honoured
# ---------------------------------------------------------------------------------------------------------------


def test_sampling_options_are_passed_on_and_repeated():
    asked = parse(max_output_tokens=5, temperature=0.5, top_p=0.9, instructions="Be brief.", stream=True)
    assert (asked.model, asked.max_tokens, asked.temperature, asked.top_p, asked.stream) == ("m", 5, 0.5, 0.9, True)
    assert asked.messages == [Message("system", "Be brief."), Message("user", "hi")]
    said = answer(parse(max_output_tokens=5, temperature=0.5, metadata={"a": "b"}, tools=[TOOL]), reply("x"))
    assert (said["max_output_tokens"], said["temperature"], said["top_p"], said["metadata"]) == (5, 0.5, 1, {"a": "b"})
    assert said["tools"] == [TOOL] and said["tool_choice"] == "auto" and said["store"] is False


def test_messages_of_every_role_become_messages():
    items = [
        {"role": "developer", "content": "a"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
        {"role": "assistant", "content": "d"},
    ]
    roles = [(each.role, each.content) for each in parse(input=items).messages]
    assert roles == [("system", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d")]


def test_an_answer_can_be_sent_back_as_it_came_with_the_tools_results():
    calls = [ToolCall(id=id, name="sh", arguments='{"cmd": "ls"}') for id in "ab"]
    said = reply("So:", reasoning="hm", tool_calls=calls, finish_reason="tool_calls")
    output = answer(parse(tools=[TOOL], include=["reasoning.encrypted_content"]), said)["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    del output[0]["content"]  # as codex sends it back: the encrypted form alone
    results = [{"type": "function_call_output", "call_id": id, "output": id.upper()} for id in "ab"]
    back = parse(input=[{"role": "user", "content": "hi"}, *output, *results])
    assert back.messages[1:] == [
        Message("assistant", "So:", reasoning="hm", tool_calls=calls),
        Message("tool", "A", tool_call_id="a"),
        Message("tool", "B", tool_call_id="b"),
    ]


def test_tools_and_the_choice_among_them_are_passed_on():
    asked = parse(tools=[TOOL], tool_choice={"type": "function", "name": "sh"}, parallel_tool_calls=False)
    assert asked.tools == [Tool(name="sh", description="Runs", parameters={"type": "object"})]
    assert asked.tool_choice == "=sh" and not asked.parallel_tool_calls
    assert answer(asked, reply())["tool_choice"] == {"type": "function", "name": "sh"}
    assert parse(tools=[TOOL], tool_choice="required").tool_choice == "required"


def test_the_functions_of_a_namespace_are_offered_and_their_calls_come_back_under_it():
    asked = parse(tools=[{"type": "namespace", "name": "agents", "description": "d", "tools": [TOOL]}])
    (tool,) = asked.tools
    assert tool.name == "agents__sh"
    (item,) = answer(asked, reply(tool_calls=[ToolCall(id="a", name="agents__sh", arguments="{}")]))["output"]
    assert (item["type"], item["namespace"], item["name"]) == ("function_call", "agents", "sh")
    assert parse(input=[item]).messages[0].tool_calls == [ToolCall(id="a", name="agents__sh", arguments="{}")]


def test_a_free_text_tool_is_a_function_of_one_string():
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: WORD"}
    asked = parse(tools=[{"type": "custom", "name": "patch", "description": "Patches.", "format": grammar}])
    assert list(asked.tools[0].parameters["properties"]) == ["input"] and "start: WORD" in asked.tools[0].description
    (item,) = answer(asked, reply(tool_calls=[ToolCall(id="a", name="patch", arguments='{"input":"x\\ny"}')]))["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", "x\ny")
    result = {"type": "custom_tool_call_output", "call_id": "a", "output": "ok"}
    back = parse(input=[item, result]).messages
    assert back[0].tool_calls == [ToolCall(id="a", name="patch", arguments='{"input":"x\\ny"}')]
    assert back[1] == Message("tool", "ok", tool_call_id="a")


def test_a_local_shell_is_a_function_of_its_action():
    asked = parse(tools=[{"type": "local_shell"}])
    assert asked.tools[0].name == "local_shell"
    arguments = '{"command": ["ls"], "timeout_ms": 5}'
    (item,) = answer(asked, reply(tool_calls=[ToolCall(id="a", name="local_shell", arguments=arguments)]))["output"]
    assert item["type"] == "local_shell_call" and item["call_id"] == "a"
    assert item["action"]["command"] == ["ls"] and item["action"]["timeout_ms"] == 5
    (message,) = parse(input=[item]).messages
    assert json.loads(message.tool_calls[0].arguments) == {"command": ["ls"], "timeout_ms": 5, "env": {}}


def test_tools_that_openai_would_run_and_clients_always_offer_are_left_out():
    assert parse(tools=[{"type": "web_search", "external_web_access": False}, {"type": "image_generation"}]).tools == []


def test_log_probs_come_with_the_text():
    asked = parse(include=["message.output_text.logprobs"], top_logprobs=2)
    assert asked.logprobs == 2 and parse().logprobs is None
    said = reply("x", logprobs=[TokenLogprob(token="x", bytes=[120], logprob=-0.5)])
    assert answer(asked, said)["output"][0]["content"][0]["logprobs"][0]["logprob"] == -0.5


def test_a_cut_answer_is_incomplete():
    said = answer(parse(), reply("x", finish_reason="length"))
    assert said["status"] == "incomplete" and said["incomplete_details"] == {"reason": "max_output_tokens"}
    assert said["output"][-1]["status"] == "incomplete"


def test_an_answer_of_nothing_is_an_empty_message():
    (item,) = answer(parse(), reply())["output"]
    assert item["content"][0]["text"] == ""


def test_fields_that_do_not_touch_the_text_are_ignored():
    parse(store=True, user="me", prompt_cache_key="x", client_metadata={"a": "b"}, service_tier="auto")
    parse(reasoning={"effort": "high", "summary": "auto"}, text={"verbosity": "low"}, truncation="disabled")
    parse(background=False, conversation=None, prompt=None, max_tool_calls=5, stream_options={})


# ---------------------------------------------------------------------------------------------------------------
# Refused
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": None}, "input", "at least one item"),
        ({"input": []}, "input", "at least one item"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "'robot'"),
        ({"input": [{"content": "x"}]}, "input[0].role", "'nothing'"),
        ({"input": [{"role": "user"}]}, "input[0].content", "a string is needed"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content", "'input_image'"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content", "'input_file'"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "'item_reference'"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input[0].call_id", "needs its id"),
        ({"input": [{"type": "function_call", "call_id": "x"}]}, "input[0].name", "the tool's name"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", "is needed"),
        ({"input": [{"type": "reasoning", "encrypted_content": "?"}]}, "input[0].encrypted_content", "not one of"),
        ({"previous_response_id": "resp_0"}, "previous_response_id", "none is stored here"),
        ({"conversation": "conv_0"}, "conversation", "nothing is stored here"),
        ({"background": True}, "background", "not supported"),
        ({"prompt": {"id": "x"}}, "prompt", "not supported"),
        ({"truncation": "auto"}, "truncation", "only disabled"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "'json_schema'"),
        ({"tools": [{"type": "file_search"}]}, "tools[0].type", "'file_search'"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].type", "'mcp'"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "needs its name"),
        ({"tools": [{}]}, "tools[0]", "type"),
        ({"tools": [TOOL, TOOL]}, "tools", "given twice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "'web_search'"),
        ({"tool_choice": {"type": "function", "name": "sh"}}, "tool_choice", "has no 'sh'"),
        ({"tool_choice": "required"}, "tool_choice", "has none"),
        ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"temperature": 3}, "temperature", "between 0 and 2"),
        ({"top_p": 0}, "top_p", "say temperature 0"),
        ({"top_logprobs": 21}, "top_logprobs", "0 to 20"),
    ],
)
def test_a_refusal_names_the_field_and_what_to_do(fields, param, words):
    with pytest.raises(ModelServiceError) as caught:
        parse(**fields)
    assert error_status(caught.value) == 400
    assert caught.value.fields["param"] == param and words in caught.value.message
    assert len(caught.value.message) < 300


def test_an_earlier_response_is_refused_as_openai_refuses_one_that_it_does_not_have():
    with pytest.raises(ModelServiceError) as caught:
        parse(previous_response_id="resp_0")
    assert caught.value.fields["code"] == "previous_response_not_found"


# ---------------------------------------------------------------------------------------------------------------
# The stream
# ---------------------------------------------------------------------------------------------------------------


def test_the_events_are_those_of_openai_in_their_order():
    calls = [ToolCall(id="a", name="sh", arguments="{}")]
    said = reply("So", reasoning="hm", tool_calls=calls, finish_reason="tool_calls")
    deltas = [Delta(reasoning="hm"), Delta(text="S"), Delta(text="o"), Delta(tool=0, tool_id="a", name="sh")]
    events = read(streamed(parse(tools=[TOOL]).events("resp_1", 7), [(said, deltas)]))
    item = ["output_item.added", "output_item.done"]
    part = ["content_part.added", "content_part.done"]
    assert [kind for kind, _ in events] == [
        f"response.{kind}"
        for kind in [
            "created",
            "in_progress",
            *[item[0], part[0], "reasoning_text.delta", "reasoning_text.done", part[1], item[1]],
            *[item[0], part[0], "output_text.delta", "output_text.delta", "output_text.done", part[1], item[1]],
            *[item[0], "function_call_arguments.delta", "function_call_arguments.done", item[1]],
            "completed",
        ]
    ]
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert all(kind == data["type"] for kind, data in events)


def test_an_error_in_the_stream_is_an_error_event_and_a_failed_response():
    events = parse().events("resp_1", 7)
    data = events.begin() + events.delta(0, Delta(text="x"))
    data += events.error(ModelServiceError("gone", status=503, type="server_error", code="upstream_lost"))
    *_, error, failed = read(data)
    assert error[0] == "error" and error[1]["message"] == "gone" and error[1]["code"] == "upstream_lost"
    assert failed[0] == "response.failed" and failed[1]["response"]["status"] == "failed"
    assert failed[1]["response"]["error"] == {"code": "upstream_lost", "message": "gone"}


_KINDS = [
    TOOL,
    {"type": "custom", "name": "patch"},
    {"type": "local_shell"},
    {"type": "namespace", "name": "agents", "tools": [TOOL]},
]


@given(spoken(), st.sampled_from(["sh", "patch", "local_shell", "agents__sh"]))
def test_the_events_joined_are_the_whole_answer(said, name):
    said[0].tool_calls[:] = [ToolCall(id=c.id, name=name, arguments=c.arguments) for c in said[0].tool_calls]
    deltas = [Delta(**{f: getattr(d, f) for f in d.__struct_fields__} | {"name": d.name and name}) for d in said[1]]
    asked = parse(tools=_KINDS, include=["reasoning.encrypted_content"])
    whole = answer(asked, said[0])
    events = [data for _, data in read(streamed(asked.events("resp_1", 7), [(said[0], deltas)]))]
    assert events[-1]["response"] == whole
    assert [each["item"] for each in events if each["type"].endswith("item.done")] == whole["output"]
    for i, item in enumerate(whole["output"]):
        mine = [each for each in events if each.get("output_index") == i]
        joined = "".join(each["delta"] for each in mine if each["type"].endswith(".delta"))
        content = item.get("content") or [{"text": ""}]
        assert joined == item.get("arguments", item.get("input", content[0]["text"]))
        assert all(each["item_id"] == item["id"] for each in mine if "item_id" in each)


# ---------------------------------------------------------------------------------------------------------------
# For any input
# ---------------------------------------------------------------------------------------------------------------

FULL = {
    "model": "m",
    "instructions": "Be brief.",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]},
        {"type": "function_call", "call_id": "a", "name": "sh", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "x"},
        {"type": "local_shell_call", "call_id": "b", "action": {"type": "exec", "command": ["ls"]}},
    ],
    "tools": _KINDS,
    "tool_choice": {"type": "function", "name": "sh"},
    "include": ["reasoning.encrypted_content"],
    "text": {"format": {"type": "text"}},
    "max_output_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_logprobs": 2,
    "stream": True,
    "metadata": {"a": "b"},
}
_values = any_json(st.sampled_from(sorted(FULL)))


@given(st.binary())
def test_no_bytes_raise_anything_but_a_refusal(body):
    holds(RESPONSES, body)


@given(_values | near(FULL, _values))
def test_no_json_raises_anything_but_a_refusal(value):
    holds(RESPONSES, json.dumps(value).encode())


@given(st.text(), st.sampled_from(["patch", "local_shell"]))
def test_whatever_the_model_writes_to_a_tool_of_another_kind_arrives(arguments, name):
    (item,) = answer(parse(tools=_KINDS), reply(tool_calls=[ToolCall(id="a", name=name, arguments=arguments)]))[
        "output"
    ]
    assert item["input"] == arguments if name == "patch" else item["action"]["command"]
