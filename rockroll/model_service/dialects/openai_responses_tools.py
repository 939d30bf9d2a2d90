"""The tools of OpenAI's responses: more kinds than a chat template knows, as functions and back.

In: the `tools` of a request; a ToolCall of the model. Out: Tools of the wire, and the item that the client expects for
a call. Leaves messages and events to the other files of this dialect.

| kind | what the model sees |
|---|---|
| function | itself |
| namespace | each function of it, its name after the namespace's |
| custom (free text) | a function of one string, `input` |
| local_shell | a function of the shell's action |
| web_search, image_generation, tool_search | nothing: OpenAI would run them; clients offer them without being asked |

Others that OpenAI would run (file_search, mcp, …) are refused: an agent that asks for them means them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from rockroll.model_service.dialects import checks
from rockroll.model_service.dialects.checks import bad_request
from rockroll.model_service.wire import Tool, ToolCall

LOCAL_SHELL = "local_shell"
_LEFT_OUT = ("web_search", "image_generation", "tool_search")
_TEXT = {"type": "string"}
_SHELL = {
    "type": "object",
    "properties": {
        "command": {"type": "array", "items": _TEXT},
        "working_directory": _TEXT,
        "timeout_ms": {"type": "integer"},
        "env": {"type": "object", "additionalProperties": _TEXT},
    },
    "required": ["command"],
}


class Kind(msgspec.Struct, frozen=True):
    """How the client knows a tool whose name on the wire stands for something else."""

    INPUT: ClassVar[str] = "input"
    """The one parameter of a custom tool."""

    type: str
    name: str
    namespace: str | None = None


class Choice(msgspec.Struct, omit_defaults=True):
    type: str
    name: str | None = None
    namespace: str | None = None


class _Grammar(msgspec.Struct):
    type: str = "text"
    syntax: str = ""
    definition: str = ""


class _Tool(msgspec.Struct):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    format: _Grammar | None = None
    tools: list[_Tool] | None = None


_decode = msgspec.json.Decoder(_Tool).decode


def flat(namespace: str | None, name: str) -> str:
    if not namespace:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def tools(said: list[msgspec.Raw]) -> tuple[list[Tool], dict[str, Kind]]:
    """The wire's tools, and by their name there what the client calls those that are no plain functions."""
    found: list[Tool] = []
    kinds: dict[str, Kind] = {}
    for i, raw in enumerate(said):
        at = f"tools[{i}]"
        try:
            each = _decode(raw)
        except msgspec.ValidationError as error:
            raise bad_request(f"{at}: {str(error)[:200]}", at) from None
        for tool, kind in _flattened(at, each, None):
            found.append(tool)
            if kind.type != "function" or kind.namespace:
                kinds[tool.name] = kind
    return checks.tools("tools", found), kinds


def choice(said: str | Choice | None, found: list[Tool]) -> str:
    """tool_choice as the wire says it."""
    if said is None:
        return "auto"
    if isinstance(said, str):
        if said in ("auto", "none", "required"):
            return checks.choice("tool_choice", said, found)
    else:
        if said.type == LOCAL_SHELL:
            return checks.choice("tool_choice", f"={LOCAL_SHELL}", found)
        if said.type in ("function", "custom") and said.name:
            return checks.choice("tool_choice", f"={flat(said.namespace, said.name)}", found)
    what = said if isinstance(said, str) else said.type
    raise bad_request(f"tool_choice: auto, none, required or one tool is supported, got {what[:64]!r}", "tool_choice")


def item(id: str, call: ToolCall, kind: Kind | None, status: str) -> dict[str, Any]:
    """The output item of a whole call."""
    head = {"id": id, "call_id": call.id, "status": status}
    if kind is None:
        return {**head, "type": "function_call", "name": call.name, "arguments": call.arguments}
    if kind.type == "custom":
        space = {"namespace": kind.namespace} if kind.namespace else {}
        return {**head, "type": "custom_tool_call", "name": kind.name, "input": free_text(call.arguments), **space}
    if kind.type == LOCAL_SHELL:
        return {**head, "type": "local_shell_call", "action": _action(call.arguments)}
    named = {"name": kind.name, "namespace": kind.namespace}
    return {**head, "type": "function_call", **named, "arguments": call.arguments}


def free_text(arguments: str) -> str:
    """What a custom tool gets: the `input` that the model gave, or all that it wrote where it gave none."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, str])[Kind.INPUT]
    except (msgspec.DecodeError, UnicodeError, RecursionError, KeyError):
        return arguments


def _action(arguments: str) -> dict[str, Any]:
    """A shell's action; a call that is none becomes one that fails and shows the model what it wrote."""
    try:
        said = msgspec.json.decode(arguments, type=_Action)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        said = _Action(command=[arguments])
    return {"type": "exec", "env": {}, **msgspec.structs.asdict(said)}


class _Action(msgspec.Struct):
    command: list[str]
    env: dict[str, str] = {}
    timeout_ms: int | None = None
    working_directory: str | None = None


def _flattened(at: str, said: _Tool, namespace: str | None) -> list[tuple[Tool, Kind]]:
    if said.type.startswith(_LEFT_OUT):
        return []
    if said.type == LOCAL_SHELL:
        return [
            (Tool(name=LOCAL_SHELL, description="Runs a command.", parameters=_SHELL), Kind(LOCAL_SHELL, LOCAL_SHELL))
        ]
    if said.type not in ("function", "custom", "namespace") or (said.type == "namespace" and namespace):
        raise bad_request(f"{at}: tools of type {said.type[:64]!r} are not supported; give a function", f"{at}.type")
    if not said.name:
        raise bad_request(f"{at}.name: a tool needs its name", f"{at}.name")
    if said.type == "namespace":
        inner = [_flattened(f"{at}.tools[{i}]", each, said.name) for i, each in enumerate(said.tools or [])]
        return [pair for pairs in inner for pair in pairs]
    description, parameters = said.description, said.parameters
    if said.type == "custom":
        parameters = {"type": "object", "properties": {Kind.INPUT: _TEXT}, "required": [Kind.INPUT]}
        if said.format and said.format.definition:
            grammar = f"The input follows this {said.format.syntax} grammar:\n{said.format.definition}"
            description = f"{description}\n\n{grammar}" if description else grammar
    tool = checks.tool(at, flat(namespace, said.name), description, parameters)
    return [(tool, Kind(said.type, said.name, namespace))]
