"""What every engine is: token ids in, sampled ids with log-probs and weight versions out.

In: requests as token ids, weights as Hugging Face folders. Out: the ids the model chose, each with the log-prob it
was drawn with and the version of the weights that drew it. Leaves text, messages and rewards to the rollout side.
`conformance.py` holds the promises that any implementation of `Engine` must keep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One completion wanted."""

    id: str
    """Names the request in logs; it need not be unique."""
    prompt_ids: list[int]
    """At least one token id."""
    max_tokens: int
    """At most this many new tokens, a stop token included. Together with the prompt they must fit in the context."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens that holds this much probability; 1.0 is all of them."""
    seed: int | None = None
    """Names the draws: token i is drawn with (seed, i), whatever else is in the batch. None: the engine chooses."""
    stop_ids: list[int] = []
    """Generation ends after any of these; the stop token is the last of `token_ids`."""
    anew: bool = False
    """Where weights change under way, it begins anew with the new ones: all tokens of the answer have one version.
    False: it goes on with the new weights."""


class Generation(msgspec.Struct, frozen=True, kw_only=True, tag="generation"):
    """What was sampled. The three lists have equal lengths."""

    token_ids: list[int]
    """Sampled ids; a stop token is the last of them (the model chose it: it is trained)."""
    logprobs: list[float]
    """Natural logs, of the distribution sampled from: after temperature and top_p. Greedy: those at temperature 1."""
    versions: list[int]
    """The version of the weights that produced each token."""
    finish_reason: Literal["stop", "length", "abort"]
    """stop: one of stop_ids. length: max_tokens. abort: the engine gave the request up; what it had is here."""
    thrown: int = 0
    """Tokens that were sampled for it and thrown away, since it began anew."""


class Piece(msgspec.Struct, frozen=True, kw_only=True, tag="piece"):
    """Some tokens of a generation under way. Joined in order, the pieces are the Generation."""

    start: int
    """How many tokens came before: a piece that was lost is noticed. 0 after others: the answer begins anew, and what
    was told of it is void (`GenerateRequest.anew` alone)."""
    token_ids: list[int]
    logprobs: list[float]
    versions: list[int]


OnTokens = Callable[[Piece], None]


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """Proof of a weight delivery: what the exporter says of the same folder, or the weights did not arrive."""

    version: int
    tensors: int
    """How many tensors were loaded."""
    digest: str
    """`rockroll.digest.digest` of them, as the file names them."""
    held: int = 0
    """How many of them were read back from the engine's memory with the same bits; a backend that repacks what it loads
    shows fewer than `tensors`."""
    paused_s: float = 0.0
    """How long no token was sampled for it: from the end of the last step before it to the going on, the proof
    included."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What this engine serves."""

    model: str
    """The folder that the model was loaded from at start."""
    context_length: int
    """Prompt and new tokens together, at most."""
    vocab_size: int
    version: int
    """Of the weights in use now."""
    stop_ids: list[int]
    """The model's own end-of-sequence ids; a request names its stop_ids itself."""
    pid: int


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """How much an engine has to do: what a pool routes by, and a sign of life."""

    running: int
    """Requests decoded together now."""
    waiting: int
    """Requests that have no place in the batch yet."""
    slots: int
    """Requests that can be decoded together at most."""
    kv_use: float
    """The part of the memory for keys and values that requests under way take, 0 to 1; 0 where it is not known."""
    preemptions: int = 0
    """Since the start: requests that began, had to give their memory back to others, and wait for it."""
    progress: int
    """Grows with every step of the model; an engine with work whose progress stands still is stuck."""
    loading: bool
    """It takes new weights: nothing is decoded meanwhile, and that is no fault."""


class Engine(Protocol):
    """Raises EngineError for a request that cannot be: it names the rule, the value got and the cure."""

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        """Sample one completion. Cancelling the call aborts the request and frees its place in the batch.

        on_tokens: told each token as soon as it is sampled, alone or with its neighbours, on the caller's event loop;
        all of them before this returns, none after.
        """
        ...

    async def load(self, path: str, version: int, digest: str = "") -> Loaded:
        """Take the weights of a Hugging Face folder (same shapes); requests under way go on with the new ones, or begin
        anew with them where they ask for it.

        digest: what the exporter says that the folder holds. EngineError with field `code` "wrong_weights" where it
        holds something else: no request is served with it.
        """
        ...

    async def logprobs(self, ids: list[int]) -> list[float]:
        """log p(ids[i] | ids[:i]) for i = 1 … len(ids)-1, at temperature 1, from one full forward."""
        ...

    async def info(self) -> EngineInfo: ...
