"""Engines whose policy is a Python function: real in everything but the weights."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from rockroll.engine.api import EngineInfo, GenerateRequest, Generation, Loaded, OnTokens, Piece
from rockroll.errors import EngineError
from rockroll.rollout.tokenizer import ChatTokenizer

Policy = Callable[[str, GenerateRequest], str | list[int]]
"""From the prompt's text and the request to an answer: text (a stop token is added), or ids as they stand."""


class ScriptedEngine:
    """Answers with `policy`. `gate`, where there is one, is awaited before each answer."""

    def __init__(self, tokenizer: ChatTokenizer, policy: Policy, context_length: int = 2048) -> None:
        self.tokenizer, self.policy, self.context_length = tokenizer, policy, context_length
        self.version = 3
        self.piece = 2
        """Tokens that are told together."""
        self.requests: list[GenerateRequest] = []
        self.answers: list[Generation] = []
        self.aborted: list[str] = []
        self.gate: Callable[[GenerateRequest], asyncio.Future[None] | None] = lambda request: None

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        self.requests.append(request)
        if len(request.prompt_ids) + request.max_tokens > self.context_length:
            raise EngineError(f"{len(request.prompt_ids)} + {request.max_tokens} > {self.context_length}")
        try:
            await (self.gate(request) or asyncio.sleep(0))
        except asyncio.CancelledError:
            self.aborted.append(request.id)
            raise
        answer = self.policy(self.tokenizer._tokenizer.decode(request.prompt_ids, skip_special_tokens=False), request)
        ids = answer if isinstance(answer, list) else [*self.tokenizer.encode(answer), request.stop_ids[0]]
        ids = ids[: request.max_tokens]
        generation = Generation(
            token_ids=ids,
            logprobs=[-0.25] * len(ids),
            versions=[self.version] * len(ids),
            finish_reason="stop" if ids[-1] in request.stop_ids else "length",
        )
        for start in range(0, len(ids) if on_tokens else 0, self.piece):
            end = start + self.piece
            assert on_tokens is not None
            on_tokens(
                Piece(
                    start=start,
                    token_ids=ids[start:end],
                    logprobs=generation.logprobs[start:end],
                    versions=generation.versions[start:end],
                )
            )
            await asyncio.sleep(0)
        self.answers.append(generation)
        return generation

    async def load(self, path: str, version: int, digest: str = "") -> Loaded:
        raise EngineError("a scripted engine has no weights")

    async def logprobs(self, ids: list[int]) -> list[float]:
        raise EngineError("a scripted engine has no weights")

    async def info(self) -> EngineInfo:
        return EngineInfo(
            model="scripted",
            context_length=self.context_length,
            vocab_size=self.tokenizer.vocab_size,
            version=self.version,
            stop_ids=self.tokenizer.stop_ids,
            pid=os.getpid(),
        )


def last_user(prompt: str) -> str:
    """The last user message in a prompt of the test template."""
    return prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
