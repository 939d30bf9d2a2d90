"""What OpenAI's dialects share: the error shape, the models, usage and log-probs as chat and responses give them.

In: what the wire says. Out: JSON in OpenAI's shapes. Leaves each kind of request to its own file.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects import checks
from rockroll.model_service.dialects.call import Vendor, encode
from rockroll.model_service.dialects.checks import NOTHING, bad_request
from rockroll.model_service.wire import ChatReply, TokenLogprob


class Shaping(msgspec.Struct):
    """Fields of a chat or a completion that shape the text and are not supported: OpenAI's, and those that other
    servers of its dialects take."""

    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    top_k: int | None = None
    enable_thinking: bool | None = None
    logit_bias: msgspec.Raw = NOTHING
    min_tokens: msgspec.Raw = NOTHING
    ignore_eos: msgspec.Raw = NOTHING
    bad_words: msgspec.Raw = NOTHING
    stop_token_ids: msgspec.Raw = NOTHING
    chat_template: msgspec.Raw = NOTHING
    chat_template_kwargs: msgspec.Raw = NOTHING
    continue_final_message: msgspec.Raw = NOTHING
    guided_json: msgspec.Raw = NOTHING
    guided_regex: msgspec.Raw = NOTHING
    guided_choice: msgspec.Raw = NOTHING
    guided_grammar: msgspec.Raw = NOTHING
    structured_outputs: msgspec.Raw = NOTHING

    def refuse(self) -> None:
        """ModelServiceError (400) where one of them says something."""
        checks.refuse_raw(self, _RAW, "not supported; leave it out")
        checks.refuse_unless(self, {"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "min_p": 0})
        if self.top_k not in (None, 0, -1):
            raise bad_request("top_k: not supported; leave it out", "top_k")
        if self.enable_thinking is not None:
            raise bad_request("enable_thinking: the run says whether its model thinks; leave it out", "enable_thinking")


_RAW = tuple(name for name in Shaping.__struct_fields__ if getattr(Shaping(), name) is NOTHING)


class Part(msgspec.Struct):
    """One piece of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


def joined(at: str, said: str | list[Part] | None, kinds: tuple[str, ...]) -> str:
    """The text of a content: a string, or parts of these kinds and refusals. ModelServiceError (400) for any other."""
    if isinstance(said, str):
        return said
    if said is None:
        raise bad_request(f"{at}: a string is needed, or a list of text parts", at)
    texts: list[str] = []
    for i, part in enumerate(said):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type != "refusal" and part.type not in kinds:
            raise bad_request(f"{at}[{i}]: {part.type[:64]!r} is not supported, this model reads text only", at)
        if text is None:
            raise bad_request(f"{at}[{i}].text: a text part needs its text, a string", at)
        texts.append(text)
    return "".join(texts)


def error_status(error: ModelServiceError) -> int:
    """The HTTP status that `error` asks for; 500 where it asks for none that an error can have."""
    status = error.fields.get("status")
    return status if isinstance(status, int) and 400 <= status <= 599 else 500


def error_object(error: ModelServiceError) -> dict[str, Any]:
    fallback = "server_error" if error_status(error) >= 500 else "invalid_request_error"
    fields = error.fields
    return {
        "message": error.message,
        "type": fields.get("type") or fallback,
        "param": fields.get("param"),
        "code": fields.get("code"),
    }


def error_body(error: ModelServiceError) -> bytes:
    """`error` in OpenAI's shape."""
    return encode({"error": error_object(error)})


def model_list(names: list[str], created: int) -> bytes:
    return encode({"object": "list", "data": [_model(name, created) for name in names]})


def model_card(name: str, created: int) -> bytes:
    return encode(_model(name, created))


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "rockroll"}


def usage(replies: list[ChatReply]) -> dict[str, Any]:
    """Of all completions of a call; the prompt counts once, as OpenAI counts it."""
    prompt = max((reply.prompt_tokens for reply in replies), default=0)
    completion = sum(reply.completion_tokens for reply in replies)
    cached = max((reply.cached_tokens for reply in replies), default=0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
    }


def token_logprobs(tokens: list[TokenLogprob]) -> list[dict[str, Any]]:
    return [
        {
            "token": each.token,
            "logprob": each.logprob,
            "bytes": each.bytes,
            "top_logprobs": [
                {"token": token, "logprob": logprob, "bytes": list(token.encode())} for token, logprob in each.top
            ],
        }
        for each in tokens
    ]


OPENAI = Vendor(request_id="x-request-id", error=error_body, status=error_status, models=model_list, model=model_card)
