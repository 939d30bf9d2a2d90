"""OpenAI's responses, the way out: a reply and its deltas to a response and its events.

In: a ChatReply, and Deltas as they come. Out: bytes, as OpenAI sends them. Leaves requests to openai_responses.py.

A response is a list of items: the thought, the message and each call, in the order in which the model gave them.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects import openai_responses_tools as its_tools
from rockroll.model_service.dialects.call import Events, encode, sse
from rockroll.model_service.dialects.openai import error_object, token_logprobs
from rockroll.model_service.dialects.openai_responses_tools import LOCAL_SHELL, Choice, Kind
from rockroll.model_service.wire import ChatReply, Delta, TokenLogprob, ToolCall


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """What a response repeats of its request, and how its client knows the tools."""

    model: str
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    tools: list[msgspec.Raw]
    """As they were given, without a line break."""
    tool_choice: str | Choice
    parallel_tool_calls: bool
    metadata: dict[str, str]
    kinds: dict[str, Kind]
    encrypted: bool
    """Whether the client wants thoughts in a form that it can send back."""


def response(id: str, created: int, frame: Frame, reply: ChatReply) -> bytes:
    """The JSON body of a whole `response`."""
    last = "incomplete" if reply.finish_reason == "length" else "completed"
    makers: list[Any] = []
    if reply.reasoning:
        makers.append(lambda i, status: _thought(_item_id("rs", id, i), reply.reasoning, frame.encrypted))
    if reply.text or not reply.tool_calls:
        text, logprobs = reply.text, reply.logprobs or []
        makers.append(lambda i, status: _message(_item_id("msg", id, i), status, [_part(text, logprobs)]))
    for call in reply.tool_calls:
        kind = frame.kinds.get(call.name)
        makers.append(lambda i, status, call=call, kind=kind: its_tools.item(_item_id("fc", id, i), call, kind, status))
    end = len(makers) - 1
    output = [maker(i, last if i == end else "completed") for i, maker in enumerate(makers)]
    return encode(_response(id, created, frame, output, reply))


def _response(
    id: str,
    created: int,
    frame: Frame,
    output: list[dict[str, Any]],
    reply: ChatReply | None = None,
    error: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """reply: None before its end. error: why there will be none."""
    status = "in_progress" if error is None else "failed"
    if reply is not None:
        status = "incomplete" if reply.finish_reason == "length" else "completed"
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "status": status,
        "background": False,
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": frame.instructions,
        "max_output_tokens": frame.max_output_tokens,
        "max_tool_calls": None,
        "model": frame.model,
        "output": output,
        "parallel_tool_calls": frame.parallel_tool_calls,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": frame.temperature,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": frame.tool_choice,
        "tools": frame.tools,
        "top_logprobs": frame.top_logprobs,
        "top_p": frame.top_p,
        "truncation": "disabled",
        "usage": None if reply is None else _usage(reply),
        "user": None,
        "metadata": frame.metadata,
    }


def _usage(reply: ChatReply) -> dict[str, Any]:
    return {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"cached_tokens": reply.cached_tokens},
        "output_tokens": reply.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }


def _item_id(kind: str, id: str, index: int) -> str:
    return f"{kind}_{id.removeprefix('resp_')}_{index}"


def _thought(id: str, text: str, encrypted: bool) -> dict[str, Any]:
    item: dict[str, Any] = {"id": id, "type": "reasoning", "summary": []}
    item["content"] = [{"type": "reasoning_text", "text": text}] if text else []
    if encrypted:
        item["encrypted_content"] = base64.b64encode(text.encode()).decode()
    return item


def _message(id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": content}


def _part(text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": token_logprobs(logprobs)}


class ResponseEvents(Events):
    """created ─► in_progress ─► (output_item.added ─► what the item says ─► output_item.done) … ─► completed,
    incomplete or failed. One item is open at a time."""

    def __init__(self, id: str, created: int, frame: Frame) -> None:
        super().__init__()
        self._id, self._created, self._frame = id, created, frame
        self._number = -1
        self._output: list[dict[str, Any]] = []
        self._open: _Thinking | _Saying | _Calling | None = None

    def begin(self) -> bytes:
        return b"".join(
            self._event(kind, response=self._response()) for kind in ("response.created", "response.in_progress")
        )

    def _piece(self, index: int, delta: Delta) -> bytes:
        data = b""
        if delta.reasoning:
            if not isinstance(self._open, _Thinking):
                data += self._enter(_Thinking(self._new_id("rs"), self._frame.encrypted))
            data += self._say(delta.reasoning)
        if delta.text and not isinstance(self._open, _Saying):
            data += self._enter(_Saying(self._new_id("msg")))
        if delta.text or (delta.logprobs and isinstance(self._open, _Saying)):
            data += self._say(delta.text, delta.logprobs)  # those of thoughts and calls have no place in a response
        if delta.tool is not None:
            if not isinstance(self._open, _Calling) or self._open.index != delta.tool:
                call = ToolCall(id=delta.tool_id, name=delta.name, arguments="")
                data += self._enter(_Calling(self._new_id("fc"), delta.tool, call, self._frame.kinds.get(call.name)))
            data += self._say(delta.arguments)
        return data

    def _finish(self, index: int, reply: ChatReply) -> bytes:
        data = b""
        if not reply.text and not reply.tool_calls and not isinstance(self._open, _Saying):
            data += self._enter(_Saying(self._new_id("msg")))
        status = "incomplete" if reply.finish_reason == "length" else "completed"
        data += self._leave(status)
        return data + self._event(f"response.{status}", response=self._response(reply))

    def end(self) -> bytes:
        return b""

    def error(self, error: ModelServiceError) -> bytes:
        said = error_object(error)
        code = said["code"] or said["type"]
        data = self._event("error", code=code, message=said["message"], param=said["param"])
        failed = {"code": code, "message": said["message"]}
        return data + self._event("response.failed", response=self._response(error=failed))

    def _response(self, reply: ChatReply | None = None, error: dict[str, Any] | None = None) -> dict[str, Any]:
        return _response(self._id, self._created, self._frame, self._output, reply, error)

    def _new_id(self, kind: str) -> str:
        return _item_id(kind, self._id, len(self._output) + (self._open is not None))

    def _enter(self, what: _Thinking | _Saying | _Calling) -> bytes:
        data = self._leave("completed")
        self._open = what
        data += self._event("response.output_item.added", output_index=len(self._output), item=what.item(None))
        if what.part is not None:
            data += self._of("response.content_part.added", content_index=0, part=what.part(""))
        return data

    def _say(self, text: str, logprobs: list[TokenLogprob] | None = None) -> bytes:
        assert self._open is not None
        said = self._open.say(text, logprobs or [])
        return b"" if said is None else self._of(f"{self._open.event}.delta", **said)

    def _leave(self, status: str) -> bytes:
        if self._open is None:
            return b""
        data = b"".join(self._of(kind, **said) for kind, said in self._open.done())
        item = self._open.item(status)
        data += self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open = None
        return data

    def _of(self, kind: str, **rest: Any) -> bytes:
        """An event of the item that is open."""
        assert self._open is not None
        return self._event(kind, item_id=self._open.id, output_index=len(self._output), **rest)

    def _event(self, kind: str, **rest: Any) -> bytes:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number, **rest}, kind)


# ---------------------------------------------------------------------------------------------------------------
# The items while they are spoken. item(None): as it is added; item(status): whole
# ---------------------------------------------------------------------------------------------------------------


class _Thinking:
    event = "response.reasoning_text"

    def __init__(self, id: str, encrypted: bool) -> None:
        self.id, self._encrypted = id, encrypted
        self._text = ""

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": text}

    def item(self, status: str | None) -> dict[str, Any]:
        return _thought(self.id, self._text, self._encrypted)

    def say(self, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        self._text += text
        return {"content_index": 0, "delta": text}

    def done(self) -> list[tuple[str, dict[str, Any]]]:
        return [
            (f"{self.event}.done", {"content_index": 0, "text": self._text}),
            ("response.content_part.done", {"content_index": 0, "part": self.part(self._text)}),
        ]


class _Saying:
    event = "response.output_text"

    def __init__(self, id: str) -> None:
        self.id = id
        self._text = ""
        self._logprobs: list[TokenLogprob] = []

    def part(self, text: str) -> dict[str, Any]:
        return _part(text, [])

    def item(self, status: str | None) -> dict[str, Any]:
        if status is None:
            return _message(self.id, "in_progress", [])
        return _message(self.id, status, [_part(self._text, self._logprobs)])

    def say(self, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        self._text += text
        self._logprobs += logprobs
        return {"content_index": 0, "delta": text, "logprobs": token_logprobs(logprobs)}

    def done(self) -> list[tuple[str, dict[str, Any]]]:
        part = _part(self._text, self._logprobs)
        said = {"content_index": 0, "text": self._text, "logprobs": part["logprobs"]}
        return [
            (f"{self.event}.done", said),
            ("response.content_part.done", {"content_index": 0, "part": part}),
        ]


class _Calling:
    part = None

    def __init__(self, id: str, index: int, call: ToolCall, kind: Kind | None) -> None:
        self.id, self.index = id, index
        self._call, self._kind = call, kind
        self._arguments = ""
        self._type = "function" if kind is None else kind.type
        self.event = f"response.{'custom_tool_call_input' if self._type == 'custom' else 'function_call_arguments'}"

    def item(self, status: str | None) -> dict[str, Any]:
        call = msgspec.structs.replace(self._call, arguments=self._arguments)
        return its_tools.item(self.id, call, self._kind, status or "in_progress")

    def say(self, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
        """None where the client's form of the call is known only when it is whole."""
        self._arguments += text
        return {"delta": text} if text and self._type == "function" else None

    def done(self) -> list[tuple[str, dict[str, Any]]]:
        if self._type == LOCAL_SHELL:
            return []
        if self._type == "custom":
            text = its_tools.free_text(self._arguments)
            return [(f"{self.event}.delta", {"delta": text}), (f"{self.event}.done", {"input": text})]
        return [(f"{self.event}.done", {"name": self._call.name, "arguments": self._arguments})]
