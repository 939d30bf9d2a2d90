"""What a message means: as a chat template takes it, and whether two of them say the same.

In: messages as an Env's loop makes them (mappings) or as the gateway sends them (wire.Message). Out: a template's
mappings, and keys to compare. Pure. Leaves the memory of conversations to transcript.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rockroll.model_service.wire import Message as WireMessage
from rockroll.model_service.wire import Tool, ToolCall

Given = Mapping[str, Any] | WireMessage
"""A message as it was given."""


def role(message: Given) -> str:
    return message.role if isinstance(message, WireMessage) else str(message.get("role"))


def template_form(message: Given) -> Mapping[str, Any]:
    """As chat templates take it: a call's arguments are an object wherever they are one."""
    if not isinstance(message, WireMessage):
        return message
    form: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        form["reasoning_content"] = message.reasoning
    if message.tool_calls:
        form["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _object(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        form["tool_call_id"] = message.tool_call_id
    if message.name:
        form["name"] = message.name
    return form


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tool definitions as chat templates take them."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in tools
    ]


def parts(message: Given) -> tuple[str, str, list[ToolCall]]:
    """Reasoning, content and calls of an assistant's message."""
    if isinstance(message, WireMessage):
        return message.reasoning, message.content, message.tool_calls
    calls = [
        ToolCall(id=str(call.get("id", "")), name=call["function"]["name"], arguments=_text(call["function"]))
        for call in message.get("tool_calls") or ()
    ]
    return message.get("reasoning_content") or "", message.get("content") or "", calls


def meaning(content: str, calls: Sequence[ToolCall]) -> tuple[Any, ...]:
    """A key that two answers share exactly where their content is the same text and their calls, in order, have the
    same names and the same arguments as JSON values, however those are spaced and ordered."""
    return content, *((call.name, canonical(call.arguments)) for call in calls)


def canonical(arguments: str) -> str:
    """One text for each JSON value; 1, 1.0 and true stay apart. What is no JSON stands for itself."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def answer_message(like: Given | None, reasoning: str, content: str, calls: Sequence[ToolCall]) -> Given:
    """An answer as a message of the same kind as the others of its conversation."""
    if isinstance(like, WireMessage):
        return WireMessage("assistant", content, reasoning, list(calls))
    message = template_form(WireMessage("assistant", content, reasoning, list(calls)))
    return dict(message)


def _object(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _text(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments", {})
    return arguments if isinstance(arguments, str) else json.dumps(arguments)
