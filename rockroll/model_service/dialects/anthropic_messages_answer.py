"""Anthropic's messages, the way out: a reply and its deltas to a message and its events.

In: a ChatReply, and Deltas as they come. Out: bytes, as Anthropic sends them. Leaves requests to anthropic_messages.py.

A tool's input is an object here and text on the wire. Its deltas are held until the call is whole: an input that is no
JSON object is given as {"INVALID_JSON": text}, in the stream as in the message, and comes back as the text it was.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects.anthropic import error_object
from rockroll.model_service.dialects.call import Events, encode, sse
from rockroll.model_service.wire import ChatReply, Delta

INVALID = "INVALID_JSON"
SIGNATURE = "cm9ja3JvbGw="
"""Clients send a thought back only with one; nothing checks it here."""


def message(id: str, model: str, reply: ChatReply, *, thinking: bool) -> bytes:
    """The JSON body of a `message`. thinking: whether the client wants to see the model's."""
    content: list[dict[str, Any]] = []
    if thinking and reply.reasoning:
        content.append({"type": "thinking", "thinking": reply.reasoning, "signature": SIGNATURE})
    if reply.text:
        content.append({"type": "text", "text": reply.text})
    for call in reply.tool_calls:
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)})
    return encode(_message(id, model, content) | _stop(reply) | {"usage": _usage(reply)})


def _message(id: str, model: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": id, "type": "message", "role": "assistant", "model": model, "content": content}


def _stop(reply: ChatReply) -> dict[str, Any]:
    reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    reason = reasons[reply.finish_reason]
    if reply.finish_reason == "stop" and reply.stop is not None:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": reply.stop}


def _usage(reply: ChatReply | None) -> dict[str, int]:
    """None: before anything is known. What was cached is not counted as input, as Anthropic counts."""
    cached = 0 if reply is None else min(reply.cached_tokens, reply.prompt_tokens)
    return {
        "input_tokens": 0 if reply is None else reply.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": 0 if reply is None else reply.completion_tokens,
    }


def _input(arguments: str) -> Any:
    if not arguments.strip():
        return {}
    try:
        msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {INVALID: arguments}
    return msgspec.Raw(arguments.encode())


class MessageEvents(Events):
    """message_start ─► (content_block_start ─► content_block_delta … ─► content_block_stop) … ─► message_delta ─►
    message_stop. One block is open at a time: a thought, the text or a tool's call."""

    PING = sse({"type": "ping"}, "ping")

    def __init__(self, id: str, model: str, *, thinking: bool) -> None:
        super().__init__()
        self._id, self._model = id, model
        self._thinking = thinking
        self._open: str | int | None = None
        """thinking, text, or the index of a tool's call."""
        self._block = -1
        self._arguments = ""

    def begin(self) -> bytes:
        start = _message(self._id, self._model, []) | {"stop_reason": None, "stop_sequence": None}
        return _event("message_start", message=start | {"usage": _usage(None)}) + self.PING

    def _piece(self, index: int, delta: Delta) -> bytes:
        data = b""
        if delta.reasoning and self._thinking:
            data += self._enter("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            data += self._delta({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.text:
            data += self._enter("text", {"type": "text", "text": ""})
            data += self._delta({"type": "text_delta", "text": delta.text})
        if delta.tool is not None:
            block = {"type": "tool_use", "id": delta.tool_id, "name": delta.name, "input": {}}
            data += self._enter(delta.tool, block)
            self._arguments += delta.arguments
        return data

    def _finish(self, index: int, reply: ChatReply) -> bytes:
        return self._leave() + _event("message_delta", delta=_stop(reply), usage=_usage(reply))

    def end(self) -> bytes:
        return _event("message_stop")

    def error(self, error: ModelServiceError) -> bytes:
        return _event("error", error=error_object(error))

    def _enter(self, kind: str | int, block: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        data = self._leave()
        self._open = kind
        self._block += 1
        return data + _event("content_block_start", index=self._block, content_block=block)

    def _leave(self) -> bytes:
        if self._open is None:
            return b""
        data = b""
        if self._open == "thinking":
            data = self._delta({"type": "signature_delta", "signature": SIGNATURE})
        elif isinstance(self._open, int):
            written = encode(_input(self._arguments)).decode()
            data = self._delta({"type": "input_json_delta", "partial_json": written})
            self._arguments = ""
        self._open = None
        return data + _event("content_block_stop", index=self._block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._block, delta=delta)


def _event(kind: str, **rest: Any) -> bytes:
    return sse({"type": kind, **rest}, kind)
