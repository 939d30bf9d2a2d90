"""OpenAI's responses, the way in: the bytes of an HTTP body to a call.

In: the body of `POST /v1/responses`. Out: an Asked, or a ModelServiceError that names the field. Nothing is stored
here, so that what refers to an earlier response is refused as OpenAI refuses one that it does not have. Leaves tools to
openai_responses_tools.py and the way out to openai_responses_answer.py.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from rockroll.model_service.dialects import checks
from rockroll.model_service.dialects import openai_responses_tools as its_tools
from rockroll.model_service.dialects.call import DEFAULT_MODEL, Call, Dialect, Events, encode
from rockroll.model_service.dialects.checks import NOTHING, bad_request
from rockroll.model_service.dialects.openai import OPENAI, Part, joined
from rockroll.model_service.dialects.openai_responses_answer import Frame, ResponseEvents, response
from rockroll.model_service.dialects.openai_responses_tools import Kind
from rockroll.model_service.wire import ChatReply, Message, ToolCall

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_ANSWERS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
_ENCRYPTED, _LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"
_ELSEWHERE = ("conversation", "prompt", "background", "context_management")


class Asked(Call, frozen=True, kw_only=True):
    frame: Frame
    """What the answer repeats of the request."""

    def answer(self, id: str, created: int, replies: list[ChatReply]) -> bytes:
        return response(id, created, self.frame, replies[0])

    def events(self, id: str, created: int) -> Events:
        return ResponseEvents(id, created, self.frame)


class _Item(msgspec.Struct):
    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None
    summary: list[Part] | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[Part] | None = None
    action: dict[str, Any] | None = None


class _Format(msgspec.Struct):
    type: str


class _Text(msgspec.Struct):
    format: _Format | None = None


class _Body(msgspec.Struct):
    input: str | list[_Item] | None = None
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    include: list[str] | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: str | its_tools.Choice | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    truncation: str | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None
    conversation: msgspec.Raw = NOTHING
    prompt: msgspec.Raw = NOTHING
    background: msgspec.Raw = NOTHING
    context_management: msgspec.Raw = NOTHING


_decode = msgspec.json.Decoder(_Body).decode


def parse_response(body: bytes) -> Asked:
    """The request in `body`. Raises ModelServiceError (status 400), and nothing else, where it is none."""
    said = checks.decode(_decode, body, "input")
    _refuse_unsupported(said)
    tools, kinds = its_tools.tools(said.tools or [])
    choice = its_tools.choice(said.tool_choice, tools)
    include = said.include or []
    top = said.top_logprobs
    if top is not None and not 0 <= top <= 20:
        raise bad_request(f"top_logprobs: 0 to 20 are given, got {checks.short(top)}", "top_logprobs")
    max_tokens = checks.at_least_1("max_output_tokens", said.max_output_tokens)
    temperature = checks.within("temperature", said.temperature, 0, 2, "0 is greedy")
    return Asked(
        model=said.model or DEFAULT_MODEL,
        messages=_messages(said),
        elsewhere=1 if said.instructions else 0,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=said.parallel_tool_calls is not False,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=checks.top_p(said.top_p),
        logprobs=(top or 0) if top or _LOGPROBS in include else None,
        stream=bool(said.stream),
        frame=Frame(
            model=said.model or DEFAULT_MODEL,
            instructions=said.instructions,
            max_output_tokens=max_tokens,
            temperature=1.0 if temperature is None else temperature,
            top_p=1.0 if said.top_p is None else said.top_p,
            top_logprobs=top or 0,
            tools=[msgspec.Raw(msgspec.json.format(bytes(each), indent=-1)) for each in said.tools or []],
            tool_choice="auto" if said.tool_choice is None else said.tool_choice,
            parallel_tool_calls=said.parallel_tool_calls is not False,
            metadata=said.metadata or {},
            kinds=kinds,
            encrypted=_ENCRYPTED in include,
        ),
    )


RESPONSES = Dialect(id_prefix="resp_", parse=parse_response, vendor=OPENAI, array="input")


def _refuse_unsupported(said: _Body) -> None:
    if said.previous_response_id is not None:
        raise bad_request(
            f"Previous response with id {said.previous_response_id[:128]!r} not found: none is stored here; send the "
            "whole conversation as `input`",
            "previous_response_id",
            "previous_response_not_found",
        )
    checks.refuse_raw(said, _ELSEWHERE, "not supported, nothing is stored here; send the whole `input`")
    if said.truncation not in (None, "disabled"):
        raise bad_request(
            f"truncation: only disabled is supported, got {said.truncation[:64]!r}; leave it out", "truncation"
        )
    if said.text and said.text.format and said.text.format.type != "text":
        raise bad_request(
            f"text.format: only type text is supported, got {said.text.format.type[:64]!r}; leave it out", "text.format"
        )


def _messages(said: _Body) -> list[Message]:
    found = [Message("system", said.instructions)] if said.instructions else []
    if isinstance(said.input, str):
        return [*found, Message("user", said.input)]
    if not said.input:
        raise bad_request("input: a string is needed, or a list of at least one item", "input")
    if len(said.input) > checks.MAX_MESSAGES:
        raise bad_request(f"input: at most {checks.MAX_MESSAGES} items are taken, got {len(said.input)}", "input")
    history = _History(found)
    for i, item in enumerate(said.input):
        history.add(f"input[{i}]", item)
    return history.whole()


class _History:
    """Items to messages: a thought, the text and the calls after it were one answer of the model, and are one again."""

    def __init__(self, messages: list[Message]) -> None:
        self._messages = messages
        self._thought: list[str] = []
        self._text: str | None = None
        self._calls: list[ToolCall] = []

    def whole(self) -> list[Message]:
        self._close()
        return self._messages

    def add(self, at: str, item: _Item) -> None:
        if item.type == "message":
            self._message(at, item)
        elif item.type == "reasoning":
            if self._text is not None or self._calls:
                self._close()
            self._thought.append(_thought(at, item))
        elif item.type in ("function_call", "custom_tool_call", "local_shell_call"):
            self._calls.append(_call(at, item))
        elif item.type in _ANSWERS:
            self._close()
            id = item.call_id or (item.id if item.type == "local_shell_call_output" else None)
            if not id:
                raise bad_request(f"{at}.call_id: the id of the call that it answers is needed", f"{at}.call_id")
            self._messages.append(Message("tool", joined(f"{at}.output", item.output, _TEXT_PARTS), tool_call_id=id))
        else:
            raise bad_request(f"{at}.type: {item.type[:64]!r} is not supported", f"{at}.type")

    def _message(self, at: str, item: _Item) -> None:
        role = _ROLES.get(item.role or "")
        if role is None:
            known = ", ".join(_ROLES)
            got = (item.role or "nothing")[:64]
            raise bad_request(f"{at}.role: {got!r} is not a known role; use one of {known}", f"{at}.role")
        text = joined(f"{at}.content", item.content, _TEXT_PARTS)
        if role != "assistant" or self._text is not None:
            self._close()
        if role == "assistant":
            self._text = text
        else:
            self._messages.append(Message(role, text))  # pyright: ignore[reportArgumentType]

    def _close(self) -> None:
        if self._text is not None or self._calls or self._thought:
            thought = "".join(self._thought)
            self._messages.append(Message("assistant", self._text or "", reasoning=thought, tool_calls=self._calls))
        self._thought, self._text, self._calls = [], None, []


def _thought(at: str, item: _Item) -> str:
    """What was given as encrypted comes back so; else the plain text of it; a summary was never the model's own."""
    if item.content:
        return joined(f"{at}.content", item.content, _TEXT_PARTS)
    try:
        return base64.b64decode(item.encrypted_content or "", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise bad_request(
            f"{at}.encrypted_content: not one of this endpoint's; leave it out",
            f"{at}.encrypted_content",
            "invalid_encrypted_content",
        ) from None


def _call(at: str, item: _Item) -> ToolCall:
    id = item.call_id or (item.id if item.type == "local_shell_call" else None)
    if not id:
        raise bad_request(f"{at}.call_id: a call needs its id", f"{at}.call_id")
    if item.type == "local_shell_call":
        arguments = {key: value for key, value in (item.action or {}).items() if key != "type" and value is not None}
        return ToolCall(id=id, name=its_tools.LOCAL_SHELL, arguments=encode(arguments).decode())
    if not item.name:
        raise bad_request(f"{at}.name: a call needs the tool's name", f"{at}.name")
    name = its_tools.flat(item.namespace, item.name)
    if item.type == "custom_tool_call":
        return ToolCall(id=id, name=name, arguments=encode({Kind.INPUT: item.input or ""}).decode())
    return ToolCall(id=id, name=name, arguments=item.arguments or "")
