"""What a request may ask of a model.

In: a model's context length and vocabulary. Out: nothing for a request that can be, EngineError with the rule, the
value and the cure for one that cannot. The same words whichever engine refuses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rockroll.engine.api import GenerateRequest
from rockroll.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Limits:
    context_length: int
    """Prompt and new tokens together."""
    vocab_size: int

    def check(self, request: GenerateRequest) -> None:
        """EngineError for a request that cannot be; field `code` is "context_length_exceeded" for a long one."""
        self.check_ids(request.prompt_ids)
        if request.max_tokens < 1:
            raise EngineError(f"max_tokens must be at least 1; got {request.max_tokens}")
        if not (math.isfinite(request.temperature) and request.temperature >= 0):
            raise EngineError(f"temperature must be 0 (greedy) or more; got {request.temperature}")
        if not 0 < request.top_p <= 1:
            raise EngineError(f"top_p must be over 0 and at most 1; got {request.top_p}")
        prompt = len(request.prompt_ids)
        if prompt + request.max_tokens > self.context_length:
            raise _too_long(
                f"a prompt of {prompt} tokens and max_tokens {request.max_tokens} exceed the context of "
                f"{self.context_length}; shorten the prompt or ask for fewer tokens"
            )

    def check_whole(self, ids: list[int]) -> None:
        """EngineError for a sequence that one forward cannot take."""
        self.check_ids(ids)
        if len(ids) > self.context_length:
            raise _too_long(f"{len(ids)} tokens exceed the context of {self.context_length}; give fewer")

    def check_ids(self, ids: list[int]) -> None:
        if not ids:
            raise EngineError("there must be at least one token id; got none")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            wrong = next(token for token in ids if not 0 <= token < self.vocab_size)
            raise EngineError(
                f"token ids are 0 … {self.vocab_size - 1} for this model; got {wrong}: another tokenizer?"
            )


def _too_long(message: str) -> EngineError:
    return EngineError(message, code="context_length_exceeded")
