"""OpenAI's chat completions, the way in: the bytes of an HTTP body to a call.

In: the body of `POST /v1/chat/completions`. Out: a Chat, or a ModelServiceError that names the field. A field that
would change the sampled text is honoured or refused, never ignored; a field that would not (user, metadata, store, …)
is ignored. Leaves the way out to openai_chat_answer.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rockroll.model_service.dialects import checks
from rockroll.model_service.dialects.call import DEFAULT_MODEL, Call, Dialect, Events
from rockroll.model_service.dialects.checks import NOTHING, bad_request
from rockroll.model_service.dialects.openai import OPENAI, Part, Shaping, joined
from rockroll.model_service.dialects.openai_chat_answer import ChatEvents, completion
from rockroll.model_service.wire import ChatReply, Message, Tool, ToolCall

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_TEXT_PARTS = ("text", "input_text", "output_text")


class Chat(Call, frozen=True, kw_only=True):
    include_usage: bool = False

    def answer(self, id: str, created: int, replies: list[ChatReply]) -> bytes:
        return completion(id, created, self.model, replies)

    def events(self, id: str, created: int) -> Events:
        return ChatEvents(id, created, self.model, self.n, include_usage=self.include_usage)


class _Function(msgspec.Struct):
    name: str
    arguments: str = ""


class _Called(msgspec.Struct):
    id: str = ""
    type: str = "function"
    function: _Function | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Called] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    function_call: msgspec.Raw = NOTHING
    audio: msgspec.Raw = NOTHING


class _Definition(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    type: str = "function"
    function: _Definition | None = None


class _Named(msgspec.Struct):
    name: str


class _Choice(msgspec.Struct):
    type: str
    function: _Named | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Format(msgspec.Struct):
    type: str


class _Body(Shaping):
    messages: list[_Message] | None = None
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Choice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: _Format | None = None
    modalities: list[str] | None = None
    functions: msgspec.Raw = NOTHING
    function_call: msgspec.Raw = NOTHING
    audio: msgspec.Raw = NOTHING
    web_search_options: msgspec.Raw = NOTHING


_decode = msgspec.json.Decoder(_Body).decode


def parse_chat(body: bytes) -> Chat:
    """The chat request in `body`. Raises ModelServiceError (status 400), and nothing else, where it is none."""
    said = checks.decode(_decode, body, "messages")
    _refuse_unsupported(said)
    tools = checks.tools("tools", [_tool(f"tools[{i}]", each) for i, each in enumerate(said.tools or [])])
    return Chat(
        model=said.model or DEFAULT_MODEL,
        messages=_messages(said.messages),
        tools=tools,
        tool_choice=checks.choice("tool_choice", _choice(said.tool_choice), tools),
        parallel_tool_calls=said.parallel_tool_calls is not False,
        max_tokens=_max_tokens(said),
        temperature=checks.within("temperature", said.temperature, 0, 2, "0 is greedy"),
        top_p=checks.top_p(said.top_p),
        stop=checks.stops("stop", said.stop),
        seed=checks.seed(said.seed),
        logprobs=_logprobs(said),
        n=checks.at_least_1("n", said.n, checks.MAX_COMPLETIONS) or 1,
        stream=bool(said.stream),
        include_usage=bool(said.stream_options and said.stream_options.include_usage),
    )


CHAT_COMPLETIONS = Dialect(id_prefix="chatcmpl-", parse=parse_chat, vendor=OPENAI, array="messages")


def _refuse_unsupported(said: _Body) -> None:
    said.refuse()
    checks.refuse_raw(said, ("functions", "function_call"), "OpenAI's older word; say `tools` and `tool_choice`")
    checks.refuse_raw(said, ("audio", "web_search_options"), "not supported; leave it out")
    if said.response_format and said.response_format.type != "text":
        raise bad_request(
            f"response_format: only type text is supported, got {said.response_format.type[:64]!r}; leave it out",
            "response_format",
        )
    if said.modalities and said.modalities != ["text"]:
        raise bad_request('modalities: only ["text"] is supported; leave it out', "modalities")


def _messages(said: list[_Message] | None) -> list[Message]:
    if not said:
        raise bad_request(
            'messages: at least one message is needed, such as {"role": "user", "content": "Hello"}', "messages"
        )
    if len(said) > checks.MAX_MESSAGES:
        raise bad_request(f"messages: at most {checks.MAX_MESSAGES} are taken, got {len(said)}", "messages")
    return [_message(f"messages[{i}]", message) for i, message in enumerate(said)]


def _message(at: str, said: _Message) -> Message:
    if said.role == "function" or checks.says_something(said.function_call):
        raise bad_request(f"{at}: functions are OpenAI's older word; send `tool_calls` and role tool", at)
    if checks.says_something(said.audio):
        raise bad_request(f"{at}.audio: not supported, this model reads text only", f"{at}.audio")
    role = _ROLES.get(said.role)
    if role is None:
        known = ", ".join(_ROLES)
        raise bad_request(f"{at}.role: {said.role[:64]!r} is not a known role; use one of {known}", f"{at}.role")
    if said.tool_calls and role != "assistant":
        raise bad_request(f"{at}.tool_calls: only a message of role assistant has them", f"{at}.tool_calls")
    if role == "tool" and not said.tool_call_id:
        raise bad_request(f"{at}.tool_call_id: role tool needs the id of the call that it answers", at)
    calls = [_call(f"{at}.tool_calls[{i}]", each) for i, each in enumerate(said.tool_calls or [])]
    if not calls and role == "user" and not said.name and isinstance(said.content, str):
        return Message("user", said.content)
    return Message(
        role=role,  # pyright: ignore[reportArgumentType]
        content=""
        if said.content is None and (calls or said.reasoning_content)
        else joined(f"{at}.content", said.content, _TEXT_PARTS),
        reasoning=(said.reasoning_content or "") if role == "assistant" else "",
        tool_calls=calls,
        tool_call_id=(said.tool_call_id or "") if role == "tool" else "",
        name=said.name or "",
    )


def _call(at: str, said: _Called) -> ToolCall:
    if said.type != "function" or said.function is None:
        raise bad_request(f"{at}: only calls of type function are known, got {said.type[:64]!r}", at)
    return ToolCall(id=said.id, name=said.function.name, arguments=said.function.arguments)


def _tool(at: str, said: _Tool) -> Tool:
    if said.type != "function" or said.function is None:
        raise bad_request(f"{at}: only tools of type function are supported, got {said.type[:64]!r}", at)
    of = said.function
    return checks.tool(f"{at}.function", of.name, of.description, of.parameters)


def _choice(said: str | _Choice | None) -> str:
    if said is None:
        return "auto"
    if isinstance(said, str):
        if said in ("auto", "none", "required"):
            return said
    elif said.type == "function" and said.function is not None:
        return f"={said.function.name}"
    what = said if isinstance(said, str) else said.type
    raise bad_request(
        f"tool_choice: auto, none, required or one function is supported, got {what[:64]!r}", "tool_choice"
    )


def _max_tokens(said: _Body) -> int | None:
    name = "max_tokens" if said.max_completion_tokens is None else "max_completion_tokens"
    value = checks.at_least_1(name, getattr(said, name))
    if said.max_tokens not in (None, value):
        raise bad_request("max_tokens and max_completion_tokens say different things; send one of them", name)
    return value


def _logprobs(said: _Body) -> int | None:
    top = said.top_logprobs
    if top is not None and not 0 <= top <= 20:
        raise bad_request(f"top_logprobs: 0 to 20 are given, got {checks.short(top)}", "top_logprobs")
    if top and not said.logprobs:
        raise bad_request("top_logprobs: only with `logprobs: true`", "top_logprobs")
    return (top or 0) if said.logprobs else None
