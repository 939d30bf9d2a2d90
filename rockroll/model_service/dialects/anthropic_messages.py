"""Anthropic's messages, the way in: the bytes of an HTTP body to a call.

In: the body of `POST /v1/messages` or `/v1/messages/count_tokens`. Out: an Asked, or a ModelServiceError that names the
field. A field that would change the sampled text is honoured or refused, never ignored; one that would not (metadata,
cache_control, betas) is ignored. Leaves the way out to anthropic_messages_answer.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rockroll.model_service.dialects import checks
from rockroll.model_service.dialects.anthropic import ANTHROPIC
from rockroll.model_service.dialects.anthropic_messages_answer import INVALID, MessageEvents, message
from rockroll.model_service.dialects.call import DEFAULT_MODEL, Call, Dialect, Events, encode
from rockroll.model_service.dialects.checks import NOTHING, bad_request
from rockroll.model_service.wire import ChatReply, Message, Tool, ToolCall

_THOUGHT = ("thinking", "redacted_thinking")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Asked(Call, frozen=True, kw_only=True):
    thinking: bool = False
    """Whether the client wants to see what the model thought."""

    def answer(self, id: str, created: int, replies: list[ChatReply]) -> bytes:
        return message(id, self.model, replies[0], thinking=self.thinking)

    def events(self, id: str, created: int) -> Events:
        return MessageEvents(id, self.model, thinking=self.thinking)


class _Block(msgspec.Struct):
    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = NOTHING
    tool_use_id: str | None = None
    content: str | list[_Block] | None = None
    thinking: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class _Choice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: str


class _Edit(msgspec.Struct):
    type: str
    keep: msgspec.Raw = NOTHING


class _Edits(msgspec.Struct):
    edits: list[_Edit] | None = None


class _Output(msgspec.Struct):
    format: msgspec.Raw = NOTHING


class _Body(msgspec.Struct):
    messages: list[_Message] | None = None
    model: str | None = None
    system: str | list[_Block] | None = None
    max_tokens: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    thinking: _Thinking | None = None
    context_management: _Edits | None = None
    output_config: _Output | None = None
    output_format: msgspec.Raw = NOTHING
    mcp_servers: msgspec.Raw = NOTHING
    container: msgspec.Raw = NOTHING


_decode = msgspec.json.Decoder(_Body).decode


def parse_messages(body: bytes) -> Asked:
    """The request in `body`. Raises ModelServiceError (status 400), and nothing else, where it is none."""
    said = checks.decode(_decode, body, "messages")
    if said.max_tokens is None:
        raise bad_request("max_tokens: field required", "max_tokens")
    call = _call(said)
    spoken = [each for each in call.messages if each.role != "system"]
    if not spoken or spoken[-1].role == "assistant":
        raise bad_request("messages: the conversation must end with a user message; a prefill is not supported")
    return call


def parse_count(body: bytes) -> Asked:
    """As `parse_messages`, where nothing is to be completed."""
    return _call(checks.decode(_decode, body, "messages"))


def counted(tokens: int) -> bytes:
    return encode({"input_tokens": tokens})


MESSAGES = Dialect(id_prefix="msg_", parse=parse_messages, vendor=ANTHROPIC, array="messages")
COUNT_TOKENS = Dialect(id_prefix="count_", parse=parse_count, vendor=ANTHROPIC, count=counted)


def _call(said: _Body) -> Asked:
    _refuse_unsupported(said)
    tools = checks.tools("tools", [_tool(f"tools.{i}", each) for i, each in enumerate(said.tools or [])])
    choice = said.tool_choice
    return Asked(
        model=said.model or DEFAULT_MODEL,
        messages=_messages(said),
        elsewhere=1 if said.system else 0,
        tools=tools,
        tool_choice=checks.choice("tool_choice", _choice(choice), tools),
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
        max_tokens=checks.at_least_1("max_tokens", said.max_tokens),
        temperature=checks.within("temperature", said.temperature, 0, 1, "0 is greedy"),
        top_p=checks.top_p(said.top_p),
        stop=checks.stops("stop_sequences", said.stop_sequences),
        stream=bool(said.stream),
        thinking=said.thinking is not None and said.thinking.type != "disabled",
    )


def _refuse_unsupported(said: _Body) -> None:
    checks.refuse_raw(said, ("output_format", "mcp_servers", "container"), "not supported; leave it out")
    if said.output_config is not None and checks.says_something(said.output_config.format):
        raise bad_request("output_config.format: not supported; leave it out", "output_config.format")
    if said.top_k is not None:
        raise bad_request("top_k: not supported; leave it out", "top_k")
    for edit in (said.context_management and said.context_management.edits) or []:
        if edit.type != "clear_thinking_20251015" or bytes(edit.keep) != b'"all"':
            raise bad_request(
                f"context_management: {edit.type[:64]!r} is not supported; the client edits its history itself",
                "context_management",
            )


def _messages(said: _Body) -> list[Message]:
    if not said.messages:
        raise bad_request("messages: at least one message is required", "messages")
    if len(said.messages) > checks.MAX_MESSAGES:
        raise bad_request(f"messages: at most {checks.MAX_MESSAGES} are taken, got {len(said.messages)}", "messages")
    found: list[Message] = []
    if said.system:
        found.append(Message("system", _text("system", said.system)))
    for i, each in enumerate(said.messages):
        at = f"messages.{i}"
        if each.role == "assistant":
            found.append(_assistant(f"{at}.content", each.content))
        elif each.role == "user":
            found += _user(f"{at}.content", each.content)
        elif each.role == "system":
            found.append(Message("system", _text(f"{at}.content", each.content)))
        else:
            raise bad_request(f"{at}.role: {each.role[:64]!r} is not a known role; use user or assistant", f"{at}.role")
    return found


def _text(at: str, said: str | list[_Block]) -> str:
    """Text blocks, joined as they are."""
    if isinstance(said, str):
        return said
    return "".join(_of_text(f"{at}.{i}", block) for i, block in enumerate(said))


def _of_text(at: str, block: _Block) -> str:
    if block.type != "text":
        raise bad_request(f"{at}: {block.type[:64]!r} is not supported here, this model reads text only", at)
    if block.text is None:
        raise bad_request(f"{at}.text: field required", at)
    return block.text


def _user(at: str, said: str | list[_Block]) -> list[Message]:
    """A tool's answer is a message of its own; the text between two answers is one."""
    if isinstance(said, str):
        return [Message("user", said)]
    if not said:
        raise bad_request(f"{at}: at least one block is required", at)
    found: list[Message] = []
    text: list[str] = []
    for i, block in enumerate(said):
        if block.type != "tool_result":
            text.append(_of_text(f"{at}.{i}", block))
            continue
        if not block.tool_use_id:
            raise bad_request(f"{at}.{i}.tool_use_id: field required", at)
        if text:
            found.append(Message("user", "".join(text)))
            text = []
        answer = _text(f"{at}.{i}.content", block.content or "")
        found.append(Message("tool", answer, tool_call_id=block.tool_use_id))
    if text:
        found.append(Message("user", "".join(text)))
    return found


def _assistant(at: str, said: str | list[_Block]) -> Message:
    if isinstance(said, str):
        return Message("assistant", said)
    text: list[str] = []
    thought: list[str] = []
    calls: list[ToolCall] = []
    for i, block in enumerate(said):
        if block.type in _THOUGHT:
            thought.append(block.thinking or "")
        elif block.type == "tool_use":
            calls.append(_tool_use(f"{at}.{i}", block))
        else:
            text.append(_of_text(f"{at}.{i}", block))
    return Message("assistant", "".join(text), reasoning="".join(thought), tool_calls=calls)


def _tool_use(at: str, block: _Block) -> ToolCall:
    if not block.id or not block.name:
        raise bad_request(f"{at}: a tool_use block needs its id and name", at)
    try:
        input = msgspec.json.decode(block.input, type=dict[str, msgspec.Raw])
        written = msgspec.json.decode(input[INVALID], type=str) if list(input) == [INVALID] else None
    except (msgspec.DecodeError, RecursionError):
        raise bad_request(f"{at}.input: an object is needed", at) from None
    arguments = bytes(block.input).decode() if written is None else written
    return ToolCall(id=block.id, name=block.name, arguments=arguments)


def _tool(at: str, said: _Tool) -> Tool:
    if said.type not in (None, "custom"):
        raise bad_request(
            f"{at}: {said.type[:64]!r} is a tool that the vendor runs or defines; give a name and an input_schema", at
        )
    return checks.tool(at, said.name, said.description, said.input_schema)


def _choice(said: _Choice | None) -> str:
    if said is None:
        return "auto"
    if said.type == "tool" and said.name:
        return f"={said.name}"
    if said.type not in _CHOICES:
        raise bad_request(f"tool_choice: auto, any, none or one tool, got {said.type[:64]!r}", "tool_choice")
    return _CHOICES[said.type]
