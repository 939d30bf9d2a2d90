"""OpenAI's chat completions, the way out: replies and deltas to the JSON of a completion and its chunks.

In: ChatReplies, and Deltas as they come. Out: bytes, as OpenAI sends them. Leaves requests to openai_chat.py.
"""

from __future__ import annotations

from typing import Any

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects.call import Events, encode, sse
from rockroll.model_service.dialects.openai import error_object, token_logprobs, usage
from rockroll.model_service.wire import ChatReply, Delta


def completion(id: str, created: int, model: str, replies: list[ChatReply]) -> bytes:
    """The JSON body of a `chat.completion`, a choice for each reply."""
    choices = [_choice(index, reply) for index, reply in enumerate(replies)]
    return encode(_envelope("chat.completion", id, created, model, choices=choices, usage=usage(replies)))


def _choice(index: int, reply: ChatReply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["content"] = reply.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.tool_calls
        ]
    logprobs = None if reply.logprobs is None else {"content": token_logprobs(reply.logprobs), "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reply.finish_reason}


class ChatEvents(Events):
    """role for each choice ─► content, reasoning_content, tool_calls … ─► finish_reason ─► usage if asked for ─►
    `[DONE]`."""

    def __init__(self, id: str, created: int, model: str, n: int, *, include_usage: bool) -> None:
        super().__init__(n)
        self._n = n
        self._head = (id, created, model)
        self._include_usage = include_usage
        self._extra = {"usage": None} if include_usage else {}
        self._replies: list[ChatReply] = []

    def begin(self) -> bytes:
        role = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._chunk(index, role) for index in range(self._n))

    def _piece(self, index: int, delta: Delta) -> bytes:
        said: dict[str, Any] = {}
        if delta.reasoning:
            said["reasoning_content"] = delta.reasoning
        if delta.text:
            said["content"] = delta.text
        if delta.tool is not None:
            function = {"arguments": delta.arguments}
            if delta.tool_id or delta.name:
                call = {"id": delta.tool_id, "type": "function", "function": {"name": delta.name, **function}}
            else:
                call = {"function": function}
            said["tool_calls"] = [{"index": delta.tool, **call}]
        logprobs = {"content": token_logprobs(delta.logprobs), "refusal": None} if delta.logprobs else None
        return self._chunk(index, said, logprobs) if said or logprobs else b""

    def _finish(self, index: int, reply: ChatReply) -> bytes:
        self._replies.append(reply)
        return self._chunk(index, {}, finish_reason=reply.finish_reason)

    def end(self) -> bytes:
        last = b""
        if self._include_usage:
            last = sse(_envelope("chat.completion.chunk", *self._head, choices=[], usage=usage(self._replies)))
        return last + b"data: [DONE]\n\n"

    def error(self, error: ModelServiceError) -> bytes:
        return sse({"error": error_object(error)})

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return sse(_envelope("chat.completion.chunk", *self._head, choices=[choice], **self._extra))


def _envelope(object: str, id: str, created: int, model: str, **rest: Any) -> dict[str, Any]:
    return {"id": id, "object": object, "created": created, "model": model, **rest}
