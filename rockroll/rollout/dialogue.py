"""The model's side of one episode: messages in, the model's answer out, within the episode's budgets.

In: the messages of each call, from an agent or from rockroll's own loop. Out: answered Turns; a transcript of exact
tokens. Leaves who asks, and what an episode's outcome is, to episode.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rockroll.engine.api import Engine, GenerateRequest, Generation
from rockroll.errors import EngineError, ModelServiceError, UsageError
from rockroll.rollout.seed import derive
from rockroll.rollout.tokenizer import ChatTokenizer, Message
from rockroll.rollout.transcript import Transcript, Turn

REFUSALS = 8
"""An agent that goes on asking after so many refusals is not going to stop: its episode is ended for it."""


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


class Dialogue:
    """One episode's calls to the model; `close` ends the ones under way and refuses any later.

    id: names the episode. seed: names its random draws; the i-th call's are named by (seed, i).
    on_turn: told the sampled tokens of each answer.
    """

    def __init__(
        self,
        id: str,
        tokenizer: ChatTokenizer,
        engine: Engine,
        sampling: Sampling,
        seed: int,
        on_turn: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.id = id
        self.transcript = Transcript(tokenizer)
        self.truncated: str | None = None
        """Why a call was refused for want of budget, as a sentence."""
        self.asked = 0
        """Calls that came in, the refused ones included."""
        self.waited_s = 0.0
        """Seconds in which at least one call was with the engine."""
        self.over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        """Done when the episode cannot go on: with the engine's failure; None where an agent will not stop asking."""
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tokenizer, self._engine, self._sampling, self._seed = tokenizer, engine, sampling, seed
        self._on_turn = on_turn
        self._flying: set[asyncio.Future[Generation]] = set()
        self._refused = 0
        self._drawn = 0
        self._closed = False

    @property
    def turns(self) -> int:
        """Calls that were answered."""
        return len(self.transcript.turns)

    async def ask(self, messages: Sequence[Message], max_tokens: int | None = None) -> Turn:
        """The model's answer. Raises ModelServiceError where the call is refused or the engine fails."""
        self.asked += 1
        if self.over.done() and not self._closed:
            # The agent is being killed. An answer now would only let it ask again, as often as it can until then.
            await asyncio.shield(self._gone)
        if self._closed:
            raise _refusal(410, "episode_ended", f"episode {self.id} has ended: this call comes too late")
        sampling = self._sampling
        if self.turns + len(self._flying) >= sampling.max_turns:
            raise self._truncate(
                # 403, since clients retry 429 after a pause, and no pause gives this episode another turn.
                403, "turn_budget_exceeded", f"an episode may ask the model {sampling.max_turns} times (task max_turns)"
            )  # fmt: skip
        try:
            prompt = self.transcript.prompt(messages)
        except UsageError as error:
            raise self._refuse(400, "invalid_messages", str(error)) from None
        room = sampling.context_length - len(prompt.ids)
        if room < 1:
            raise self._truncate(
                400,
                "context_length_exceeded",
                f"this model's context is {sampling.context_length} tokens and the messages are {len(prompt.ids)}, "
                "which leaves none for an answer; send fewer",
            )
        request = GenerateRequest(
            id=f"{self.id}.{self._drawn}",
            prompt_ids=prompt.ids,
            max_tokens=min(sampling.max_tokens, room, max_tokens or sampling.max_tokens),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=derive(self._seed, "turn", self._drawn),
            stop_ids=self._tokenizer.stop_ids,
        )
        self._drawn += 1
        try:
            generation = await self._generate(request)
            if self._closed:
                raise _refusal(410, "episode_ended", f"episode {self.id} ended while the model was answering")
            turn = self.transcript.record(prompt, generation)
        except ModelServiceError:
            raise
        except Exception as error:
            self._end(error)
            raise _refusal(500, "engine_error", f"the engine failed: {error}", "server_error") from error
        self._on_turn(len(generation.token_ids))
        return turn

    async def close(self) -> None:
        """Ends the calls under way: what they had sampled is not part of the episode."""
        self._closed = True
        if not self._gone.done():
            self._gone.set_result(None)
        flying = list(self._flying)
        for work in flying:
            work.cancel()
        await asyncio.gather(*flying, return_exceptions=True)
        self._end(None)

    async def _generate(self, request: GenerateRequest) -> Generation:
        """The engine's answer; a call that `close` cancelled is refused, one whose caller is cancelled is cancelled."""
        loop = asyncio.get_running_loop()
        work = asyncio.ensure_future(self._engine.generate(request))
        if not self._flying:
            self._since = loop.time()
        self._flying.add(work)
        try:
            return await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if self._closed:
                raise _refusal(410, "episode_ended", f"episode {self.id} ended while the model was answering") from None
            raise EngineError("the engine cancelled a request that nobody had cancelled") from None
        finally:
            self._flying.discard(work)
            if not self._flying:
                self.waited_s += loop.time() - self._since

    def _end(self, why: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(why)

    def _truncate(self, status: int, code: str, message: str) -> ModelServiceError:
        self.truncated = self.truncated or message
        return self._refuse(status, code, message)

    def _refuse(self, status: int, code: str, message: str) -> ModelServiceError:
        self._refused += 1
        if self._refused >= REFUSALS:
            self._end(None)
        return _refusal(status, code, message)


def _refusal(status: int, code: str, message: str, type: str = "invalid_request_error") -> ModelServiceError:
    return ModelServiceError(message, status=status, type=type, code=code, param=None)
