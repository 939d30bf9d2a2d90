"""OpenAI's completions, the older kind: a text to go on from, without messages or a chat template.

In: the body of `POST /v1/completions`. Out: a Text, or a ModelServiceError that names the field; replies and deltas as
`text_completion`s. A field that would change the sampled text is honoured or refused, never ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects import checks
from rockroll.model_service.dialects.call import DEFAULT_MODEL, Call, Dialect, Events, encode, sse
from rockroll.model_service.dialects.checks import NOTHING, bad_request
from rockroll.model_service.dialects.openai import OPENAI, Shaping, error_object, usage
from rockroll.model_service.wire import ChatReply, Delta, TokenLogprob

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own for this kind of request."""


class Text(Call, frozen=True, kw_only=True):
    include_usage: bool = False

    def answer(self, id: str, created: int, replies: list[ChatReply]) -> bytes:
        choices = [
            _choice(index, reply.text, self._offset, reply.logprobs, reply) for index, reply in enumerate(replies)
        ]
        return encode(_envelope(id, created, self.model, choices) | {"usage": usage(replies)})

    def events(self, id: str, created: int) -> Events:
        return TextEvents(id, created, self.model, self.n, self._offset, include_usage=self.include_usage)

    @property
    def _offset(self) -> int:
        """Where in prompt and completion together the completion begins, in characters."""
        return len(self.prompt or "")


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(Shaping):
    prompt: str | list[Any] | None = None
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    best_of: int | None = None
    logprobs: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    echo: bool | None = None
    suffix: str | None = None
    response_format: msgspec.Raw = NOTHING


_decode = msgspec.json.Decoder(_Body).decode


def parse_text(body: bytes) -> Text:
    """The request in `body`. Raises ModelServiceError (status 400), and nothing else, where it is none."""
    said = checks.decode(_decode, body, "prompt")
    _refuse_unsupported(said)
    return Text(
        model=said.model or DEFAULT_MODEL,
        messages=[],
        prompt=_prompt(said.prompt),
        max_tokens=checks.at_least_1("max_tokens", said.max_tokens) or DEFAULT_MAX_TOKENS,
        temperature=checks.within("temperature", said.temperature, 0, 2, "0 is greedy"),
        top_p=checks.top_p(said.top_p),
        stop=checks.stops("stop", said.stop),
        seed=checks.seed(said.seed),
        logprobs=said.logprobs,
        n=checks.at_least_1("n", said.n, checks.MAX_COMPLETIONS) or 1,
        stream=bool(said.stream),
        include_usage=bool(said.stream_options and said.stream_options.include_usage),
    )


COMPLETIONS = Dialect(id_prefix="cmpl-", parse=parse_text, vendor=OPENAI)


def _refuse_unsupported(said: _Body) -> None:
    said.refuse()
    checks.refuse_raw(said, ("response_format",), "not supported; leave it out")
    if said.echo:
        raise bad_request("echo: not supported; put the prompt before the answer yourself", "echo")
    if said.suffix:
        raise bad_request("suffix: not supported, this model goes on from a text's end", "suffix")
    if said.best_of not in (None, said.n or 1):
        raise bad_request("best_of: not supported; ask for `n` and choose yourself", "best_of")
    if said.logprobs is not None and not 0 <= said.logprobs <= 20:
        raise bad_request(f"logprobs: 0 to 20 are given, got {checks.short(said.logprobs)}", "logprobs")


def _prompt(said: str | list[Any] | None) -> str:
    if isinstance(said, list):
        if any(not isinstance(each, str) for each in said):
            raise bad_request("prompt: token ids are not taken, they depend on the tokenizer; send a string", "prompt")
        if len(said) != 1:
            raise bad_request(f"prompt: one string is taken, got {len(said)}; make a call for each", "prompt")
        said = str(said[0])
    if not said:
        raise bad_request("prompt: a string of at least one character is needed", "prompt")
    return said


# ---------------------------------------------------------------------------------------------------------------
# Out
# ---------------------------------------------------------------------------------------------------------------


def _envelope(id: str, created: int, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": id, "object": "text_completion", "created": created, "model": model, "choices": choices}


def _choice(
    index: int, text: str, offset: int, logprobs: list[TokenLogprob] | None, reply: ChatReply | None
) -> dict[str, Any]:
    """reply: None before its end."""
    reason = None if reply is None else ("length" if reply.finish_reason == "length" else "stop")
    said = None if logprobs is None else _logprobs(logprobs, offset)
    return {"text": text, "index": index, "logprobs": said, "finish_reason": reason}


def _logprobs(said: list[TokenLogprob], offset: int) -> dict[str, Any]:
    offsets: list[int] = []
    for each in said:
        offsets.append(offset)
        offset += len(each.token)
    return {
        "tokens": [each.token for each in said],
        "token_logprobs": [each.logprob for each in said],
        "top_logprobs": [dict(each.top) for each in said],
        "text_offset": offsets,
    }


class TextEvents(Events):
    """text … ─► finish_reason, for each choice ─► usage if asked for ─► `[DONE]`."""

    def __init__(self, id: str, created: int, model: str, n: int, offset: int, *, include_usage: bool) -> None:
        super().__init__(n)
        self._head = (id, created, model)
        self._offsets = [offset] * n
        self._include_usage = include_usage
        self._extra = {"usage": None} if include_usage else {}
        self._replies: list[ChatReply] = []

    def begin(self) -> bytes:
        return b": \n\n"  # the stream has begun: nothing is known yet, and OpenAI has no event that says nothing

    def _piece(self, index: int, delta: Delta) -> bytes:
        if not delta.text and not delta.logprobs:
            return b""
        choice = _choice(index, delta.text, self._offsets[index], delta.logprobs or None, None)
        self._offsets[index] += sum(len(each.token) for each in delta.logprobs)
        return sse(_envelope(*self._head, [choice]) | self._extra)

    def _finish(self, index: int, reply: ChatReply) -> bytes:
        self._replies.append(reply)
        return sse(_envelope(*self._head, [_choice(index, "", 0, None, reply)]) | self._extra)

    def end(self) -> bytes:
        last = sse(_envelope(*self._head, []) | {"usage": usage(self._replies)}) if self._include_usage else b""
        return last + b"data: [DONE]\n\n"

    def error(self, error: ModelServiceError) -> bytes:
        return sse({"error": error_object(error)})
