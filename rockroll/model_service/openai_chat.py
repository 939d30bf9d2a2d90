"""OpenAI's chat completions dialect: pure translation, no I/O.

In: the bytes of an HTTP body, or a ChatReply. Out: a Chat, or the bytes of a JSON or server-sent-events answer; for
whatever cannot be honoured a ModelServiceError that renders in OpenAI's error shape. Leaves sockets, routes and who
is asking to gateway.py. A field that would change the sampled text is honoured or refused, never ignored; a field
that would not (user, metadata, store, …) is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from rockroll.errors import ModelServiceError
from rockroll.model_service.wire import ChatReply, ChatRequest, Message

DEFAULT_MODEL = "rockroll"
"""Stands in the answer where the request names no model."""

MAX_MESSAGES = 10_000
MAX_TOKENS = 2**31 - 1
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """A chat request that can be honoured, before it is known who asks."""

    model: str
    messages: list[Message]
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    stream: bool
    include_usage: bool

    def request(self, id: str, sandbox: str, token: str) -> ChatRequest:
        return ChatRequest(
            id=id,
            sandbox=sandbox,
            token=token,
            model=self.model,
            messages=self.messages,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        )


# ---------------------------------------------------------------------------------------------------------------
# In
# ---------------------------------------------------------------------------------------------------------------


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw(b"null")
    function_call: msgspec.Raw = msgspec.Raw(b"null")


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Format(msgspec.Struct):
    type: str


class _Body(msgspec.Struct):
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
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: _Format | None = None
    modalities: list[str] | None = None
    # Raw: only whether these say anything matters, and skipping bytes allocates nothing.
    tools: msgspec.Raw = msgspec.Raw(b"null")
    functions: msgspec.Raw = msgspec.Raw(b"null")
    logit_bias: msgspec.Raw = msgspec.Raw(b"null")
    audio: msgspec.Raw = msgspec.Raw(b"null")


_decode = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode
_AT = re.compile(r" - at `\$\.?(.*?)`$")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ModelServiceError:
    return ModelServiceError(message, status=400, type="invalid_request_error", code=code, param=param)


def parse_chat(body: bytes) -> Chat:
    """The chat request in `body`. Raises ModelServiceError (status 400), and nothing else, where it is none."""
    try:
        said = _decode(body)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise bad_request(f"the body is not JSON: {error}; send a JSON object with `messages`") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply; send a JSON object with `messages`") from None
    _refuse_unsupported(said)
    return Chat(
        model=said.model or DEFAULT_MODEL,
        messages=_messages(said.messages),
        max_tokens=_max_tokens(said),
        temperature=_within("temperature", said.temperature, 0, 2, "0 is greedy"),
        top_p=_top_p(said.top_p),
        seed=_seed(said.seed),
        stream=bool(said.stream),
        include_usage=bool(said.stream_options and said.stream_options.include_usage),
    )


def _misfit(message: str) -> ModelServiceError:
    """msgspec's "Expected `int`, got `str` - at `$.max_tokens`" as a sentence that begins with the field."""
    at = _AT.search(message)
    param = at.group(1) if at else ""
    text = _AT.sub("", message)
    text = text[:1].lower() + text[1:]
    return bad_request(f"{param or 'the body'}: {text}", param or None)


def _refuse_unsupported(said: _Body) -> None:
    for name in ("tools", "functions", "logit_bias", "audio"):
        if _says_something(getattr(said, name)):
            raise bad_request(f"{name}: not supported yet; leave it out and talk in plain messages", name)
    for name in ("frequency_penalty", "presence_penalty"):
        if value := getattr(said, name):
            raise bad_request(f"{name}: only 0 is supported, got {value:g}; leave it out", name)
    if said.n not in (None, 1):
        raise bad_request(f"n: only 1 completion a call is supported, got {said.n}; make {said.n} calls", "n")
    if said.stop:
        raise bad_request("stop: stop strings are not supported yet; leave it out and cut the text yourself", "stop")
    if said.logprobs or said.top_logprobs:
        raise bad_request("logprobs: log-probabilities are not given to the agent; leave it out", "logprobs")
    if said.response_format and said.response_format.type != "text":
        raise bad_request(
            f"response_format: only type text is supported, got {said.response_format.type[:64]!r}; leave it out",
            "response_format",
        )
    if said.modalities and said.modalities != ["text"]:
        raise bad_request('modalities: only ["text"] is supported; leave it out', "modalities")


def _says_something(raw: msgspec.Raw) -> bool:
    return bytes(raw).translate(None, b" \t\r\n") not in (b"null", b"[]", b"{}")


def _messages(said: list[_Message] | None) -> list[Message]:
    if not said:
        raise bad_request(
            'messages: at least one message is needed, such as {"role": "user", "content": "Hello"}', "messages"
        )
    if len(said) > MAX_MESSAGES:
        raise bad_request(f"messages: at most {MAX_MESSAGES} are taken, got {len(said)}", "messages")
    return [_message(f"messages[{i}]", message) for i, message in enumerate(said)]


def _message(at: str, said: _Message) -> Message:
    if said.role in ("tool", "function") or _says_something(said.tool_calls) or _says_something(said.function_call):
        raise bad_request(f"{at}: tool calls are not supported yet; show results in a message of role user", at)
    role = _ROLES.get(said.role)
    if role is None:
        known = ", ".join(_ROLES)
        raise bad_request(f"{at}.role: {said.role[:64]!r} is not a known role; use one of {known}", f"{at}.role")
    return Message(role=role, content=_content(f"{at}.content", said.content))  # pyright: ignore[reportArgumentType]


def _content(at: str, said: str | list[_Part] | None) -> str:
    if isinstance(said, str):
        return said
    if said is None:
        raise bad_request(f"{at}: a string is needed, or a list of text parts", at)
    texts: list[str] = []
    for i, part in enumerate(said):
        if part.type != "text":
            raise bad_request(f"{at}[{i}]: {part.type[:64]!r} is not supported, this model reads text only", at)
        if part.text is None:
            raise bad_request(f"{at}[{i}].text: a text part needs its text, a string", at)
        texts.append(part.text)
    return "".join(texts)


def _max_tokens(said: _Body) -> int | None:
    name = "max_tokens" if said.max_completion_tokens is None else "max_completion_tokens"
    value = getattr(said, name)
    if value is not None and not 1 <= value <= MAX_TOKENS:
        raise bad_request(f"{name}: at least 1 (and at most {MAX_TOKENS}) is needed, got {_short(value)}", name)
    if said.max_tokens not in (None, value):
        raise bad_request("max_tokens and max_completion_tokens say different things; send one of them", name)
    return value


def _top_p(value: float | None) -> float | None:
    if value == 0:
        raise bad_request("top_p: more than 0 is needed; for greedy decoding say temperature 0", "top_p")
    return _within("top_p", value, 0, 1, "1 takes the whole distribution")


def _within(name: str, value: float | None, low: int, high: int, hint: str) -> float | None:
    if value is not None and not low <= value <= high:
        raise bad_request(f"{name}: between {low} and {high} is needed ({hint}), got {value:g}", name)
    return value


def _seed(value: int | None) -> int | None:
    if value is not None and not -(2**63) <= value < 2**63:
        raise bad_request(f"seed: a 64-bit integer is needed, got {_short(value)}", "seed")
    return value


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**20 else "a larger number"


# ---------------------------------------------------------------------------------------------------------------
# Out
# ---------------------------------------------------------------------------------------------------------------


def completion(id: str, created: int, model: str, reply: ChatReply) -> bytes:
    """The JSON body of a `chat.completion`."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": reply.text, "refusal": None},
        "logprobs": None,
        "finish_reason": reply.finish_reason,
    }
    return _encode(_envelope("chat.completion", id, created, model, choices=[choice], usage=_usage(reply)))


def completion_events(id: str, created: int, model: str, reply: ChatReply, *, include_usage: bool) -> bytes:
    """The same completion as server-sent events: role, text, finish reason, usage if asked for, `[DONE]`."""

    def event(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        extra = {"usage": None} if include_usage else {}
        return _envelope("chat.completion.chunk", id, created, model, choices=[choice], **extra)

    events = [event({"role": "assistant", "content": ""}), event({"content": reply.text})]
    events.append(event({}, reply.finish_reason))
    if include_usage:
        events.append(_envelope("chat.completion.chunk", id, created, model, choices=[], usage=_usage(reply)))
    return b"".join(b"data: " + _encode(each) + b"\n\n" for each in events) + b"data: [DONE]\n\n"


def model_list(names: Iterable[str], created: int) -> bytes:
    return _encode({"object": "list", "data": [_model(name, created) for name in names]})


def model_card(name: str, names: Iterable[str], created: int) -> bytes:
    """The JSON body of one model. Raises ModelServiceError (status 404) where `names` has no such name."""
    names = list(names)
    if name not in names:
        raise ModelServiceError(
            f"model {name[:128]!r} is not served here; served: {', '.join(names) or 'none'}",
            status=404,
            type="invalid_request_error",
            code="model_not_found",
            param="model",
        )
    return _encode(_model(name, created))


def error_status(error: ModelServiceError) -> int:
    """The HTTP status that `error` asks for; 500 where it asks for none that an error can have."""
    status = error.fields.get("status")
    return status if isinstance(status, int) and 400 <= status <= 599 else 500


def error_body(error: ModelServiceError) -> bytes:
    """`error` in OpenAI's shape."""
    fallback = "server_error" if error_status(error) >= 500 else "invalid_request_error"
    fields = error.fields
    return _encode(
        {
            "error": {
                "message": error.message,
                "type": fields.get("type") or fallback,
                "param": fields.get("param"),
                "code": fields.get("code"),
            }
        }
    )


def _envelope(object: str, id: str, created: int, model: str, **rest: Any) -> dict[str, Any]:
    return {"id": id, "object": object, "created": created, "model": model, **rest}


def _usage(reply: ChatReply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "rockroll"}
