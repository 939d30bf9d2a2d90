"""OpenAI's chat completions from the other side: a ChatRequest to the body that asks a server, its answer to ours.

In: a ChatRequest; the bytes of a completion, or of its stream in any pieces. Out: bytes; a ChatReply, and Deltas as
they come. Pure. Leaves sockets and keys to service.py, and requests that clients send to openai_chat.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects.call import encode
from rockroll.model_service.dialects.checks import bad_request
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta, Message, TokenLogprob, ToolCall

PATH = "/v1/chat/completions"


class _Top(msgspec.Struct):
    token: str
    logprob: float


class _Logprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_Top] = []


class _Logprobs(msgspec.Struct):
    content: list[_Logprob] | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Called(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Said(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Called] | None = None


class _Choice(msgspec.Struct):
    message: _Said | None = None
    delta: _Said | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Completion).decode


def body(request: ChatRequest, *, stream: bool) -> bytes:
    """What asks for this completion. Equal requests have equal bodies, so that a recording finds them again."""
    if request.prompt is not None:
        raise bad_request("prompt: this server is asked for chats only; send `messages`", "prompt")
    asked: dict[str, Any] = {"model": request.model, "messages": [_message(each) for each in request.messages]}
    if request.tools:
        asked["tools"] = [
            {
                "type": "function",
                "function": {"name": each.name, "description": each.description, "parameters": each.parameters},
            }
            for each in request.tools
        ]
        choice = request.tool_choice
        named = choice.removeprefix("=")
        asked["tool_choice"] = choice if named == choice else {"type": "function", "function": {"name": named}}
        if not request.parallel_tool_calls:
            asked["parallel_tool_calls"] = False
    for name in ("max_tokens", "temperature", "top_p", "seed"):
        if (value := getattr(request, name)) is not None:
            asked[name] = value
    if request.stop:
        asked["stop"] = request.stop
    if request.logprobs is not None:
        asked |= {"logprobs": True, "top_logprobs": request.logprobs}
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return encode(asked)


def _message(said: Message) -> dict[str, Any]:
    message: dict[str, Any] = {"role": said.role, "content": said.content}
    if said.name:
        message["name"] = said.name
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.tool_call_id:
        message["tool_call_id"] = said.tool_call_id
    if said.tool_calls:
        message["content"] = said.content or None
        message["tool_calls"] = [
            {"id": each.id, "type": "function", "function": {"name": each.name, "arguments": each.arguments}}
            for each in said.tool_calls
        ]
    return message


def failure(status: int, answer: bytes) -> ModelServiceError:
    """What a server said with an error's status, for the client to read."""
    try:
        said = msgspec.json.decode(answer)
        error = said.get("error", said) if isinstance(said, dict) else {}
    except msgspec.DecodeError:
        error = {}
    if isinstance(error, str):
        error = {"message": error}
    fields = {name: value for name in ("type", "code", "param") if isinstance(value := error.get(name), str)}
    return ModelServiceError(str(error.get("message") or f"the server answered {status}"), status=status, **fields)


class Hearing:
    """One completion as it comes in: `take` or `whole`, then `reply`."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, tuple[str, str, list[str]]] = {}
        self._logprobs: list[TokenLogprob] | None = None
        self._finish: str | None = None
        self._usage = _Usage()
        self._rest = b""

    def whole(self, answer: bytes) -> None:
        """An answer that was not streamed."""
        self._hear(answer)

    def take(self, piece: bytes) -> list[Delta]:
        """The next bytes of a stream: what they say."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        deltas: list[Delta] = []
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                deltas += self._hear(data)
        return deltas

    def reply(self) -> ChatReply:
        """ModelServiceError where the answer was not whole."""
        if self._finish is None:
            raise ModelServiceError("the server's answer ended before it was whole", status=502, type="server_error")
        calls = [
            ToolCall(id=id, name=name, arguments="".join(said)) for _, (id, name, said) in sorted(self._calls.items())
        ]
        details = self._usage.prompt_tokens_details
        return ChatReply(
            text="".join(self._text),
            finish_reason="tool_calls" if calls else "length" if self._finish == "length" else "stop",
            prompt_tokens=self._usage.prompt_tokens,
            completion_tokens=self._usage.completion_tokens,
            reasoning="".join(self._reasoning),
            tool_calls=calls,
            cached_tokens=(details.cached_tokens or 0) if details else 0,
            logprobs=self._logprobs,
        )

    def _hear(self, data: bytes) -> list[Delta]:
        try:
            said = _decode(data)
        except msgspec.DecodeError as error:
            raise ModelServiceError(
                f"the server's answer is no chat completion: {error}", status=502, type="server_error"
            ) from None
        if said.error is not None:
            raise failure(502, data)
        self._usage = said.usage or self._usage
        deltas: list[Delta] = []
        for choice in said.choices[:1]:
            self._finish = choice.finish_reason or self._finish
            if (what := choice.message or choice.delta) is not None:
                deltas += self._note(what, choice.logprobs, whole=choice.message is not None)
        return deltas

    def _note(self, said: _Said, logprobs: _Logprobs | None, *, whole: bool) -> list[Delta]:
        text, reasoning = said.content or "", said.reasoning_content or said.reasoning or ""
        tokens = [_token(each) for each in (logprobs.content or [])] if logprobs else []
        self._text.append(text)
        self._reasoning.append(reasoning)
        if logprobs is not None:
            self._logprobs = (self._logprobs or []) + tokens
        deltas = [Delta(text=text, reasoning=reasoning, logprobs=tokens)] if text or reasoning or tokens else []
        for place, each in enumerate(said.tool_calls or []):
            index = place if whole else each.index
            first = index not in self._calls
            id, name, arguments = self._calls.setdefault(
                index, (each.id or f"call_{index}", each.function.name or "", [])
            )
            new = each.function.arguments or ""
            arguments.append(new)
            deltas.append(Delta(tool=index, tool_id=id if first else "", name=name if first else "", arguments=new))
        return deltas


def _token(said: _Logprob) -> TokenLogprob:
    return TokenLogprob(
        token=said.token,
        bytes=list(said.token.encode()) if said.bytes is None else said.bytes,
        logprob=said.logprob,
        top=[(each.token, each.logprob) for each in said.top_logprobs],
    )
