"""The requests of real coding agents, as their present versions shape them: each is taken, and says what it means.

Shapes as seen from codex 0.169, claude-code 2.1, qwen-code 0.15 and opencode 1.18; the words are ours.
"""

from __future__ import annotations

from typing import Any

from rockroll.model_service.dialects import DIALECTS, Call
from rockroll.model_service.wire import Message, ToolCall
from tests.model_service.speech import call

SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}


def asked(path: str, body: dict[str, Any]) -> Call:
    return call(DIALECTS[path], body)


def test_codex():
    function = {"type": "function", "name": "exec_command", "description": "d", "strict": False, "parameters": SCHEMA}
    turn = asked(
        "/v1/responses",
        {
            "model": "tiny",
            "stream": True,
            "input": [
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "developer",
                    "content": [{"type": "input_text", "text": "a"}],
                },
                {"type": "message", "id": "msg_2", "role": "user", "content": [{"type": "input_text", "text": "b"}]},
                {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "aG0="},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
                {"type": "function_call", "name": "exec_command", "arguments": "{}", "call_id": "call_1"},
                {"type": "function_call_output", "call_id": "call_1", "output": "d"},
            ],
            "tools": [
                function,
                {"type": "namespace", "name": "agents", "description": "d", "tools": [{**function, "name": "spawn"}]},
                {"type": "web_search", "external_web_access": False},
            ],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"summary": "auto"},
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "x",
            "client_metadata": {"turn_id": "x"},
        },
    )
    assert [tool.name for tool in turn.tools] == ["exec_command", "agents__spawn"]
    assert turn.messages == [
        Message("system", "a"),
        Message("user", "b"),
        Message("assistant", "c", "hm", [ToolCall(id="call_1", name="exec_command", arguments="{}")]),
        Message("tool", "d", tool_call_id="call_1"),
    ]


def test_claude_code():
    cached = {"cache_control": {"type": "ephemeral"}}
    turn = asked(
        "/v1/messages",
        {
            "model": "tiny",
            "system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", **cached}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d", **cached}]},
                {"role": "system", "content": "e"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "x"},
                        {"type": "tool_use", "id": "call_1", "name": "Bash", "input": {"command": "ls"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "call_1", "content": "f", "is_error": False, **cached}
                    ],
                },
            ],
            "tools": [{"name": "Bash", "description": "d", "input_schema": SCHEMA}],
            "metadata": {"user_id": "x"},
            "max_tokens": 32000,
            "thinking": {"type": "adaptive"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "high"},
            "stream": True,
        },
    )
    assert turn.max_tokens == 32000 and turn.tools[0].parameters == SCHEMA
    assert turn.messages == [
        Message("system", "ab"),
        Message("user", "cd"),
        Message("system", "e"),
        Message("assistant", "", "hm", [ToolCall(id="call_1", name="Bash", arguments='{"command": "ls"}')]),
        Message("tool", "f", tool_call_id="call_1"),
    ]


def test_qwen_code_and_opencode():
    called = {"id": "call_1", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
    turn = asked(
        "/v1/chat/completions",
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "a"},
                {"role": "user", "content": [{"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "reasoning_content": "hm", "tool_calls": [called]},
                {"role": "tool", "tool_call_id": "call_1", "content": "d"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "tools": [{"type": "function", "function": {"name": "bash", "description": "d", "parameters": SCHEMA}}],
            "tool_choice": "auto",
            "max_tokens": 8000,
        },
    )
    assert turn.messages == [
        Message("system", "a"),
        Message("user", "b"),
        Message("assistant", "c", "hm", [ToolCall(id="call_1", name="bash", arguments="{}")]),
        Message("tool", "d", tool_call_id="call_1"),
    ]
