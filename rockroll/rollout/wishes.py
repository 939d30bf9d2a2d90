"""What decides how an answer is drawn: the run's settings, and what one call asks for.

In: the recipe's sampling; a request of an agent. Out: frozen values. Leaves which of the two is heeded to
dialogue.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rockroll.model_service.wire import ChatRequest, Tool


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn, and how many there may be."""

    temperature: float
    top_p: float
    max_tokens: int
    """Of one answer."""
    max_turns: int
    context_length: int
    """Prompt and answer together."""
    anew: bool = False
    """A call under way when weights change begins anew with them."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What one call asks for beside an answer. None and empty: it does not say."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    """Equal prompts with equal seeds get equal answers within an episode; other episodes draw otherwise."""
    index: int = 0
    """Which of several answers to one prompt: each draws for itself."""
    stop: Sequence[str] = ()
    tools: Sequence[Tool] = ()
    tool_choice: str = "auto"
    """auto; none: what looks like a call is text; required, =NAME: the answer is made to begin as a call."""
    parallel_tool_calls: bool = True
    """False: the answer ends after its first call."""
    logprobs: bool = False
    prompt: str | None = None
    """Text to go on from, in place of messages."""

    @staticmethod
    def of(request: ChatRequest) -> Wishes:
        return Wishes(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            index=request.index,
            stop=request.stop,
            tools=request.tools,
            tool_choice=request.tool_choice,
            parallel_tool_calls=request.parallel_tool_calls,
            logprobs=request.logprobs is not None,
            prompt=request.prompt,
        )


NO_WISHES = Wishes()
