"""The model's side of one episode: messages in, the model's answer out, within the episode's budgets.

In: the messages of each call, from an agent or from rockroll's own loop, and what else it wishes. Out: answered Turns,
whole or as they come; a transcript of exact tokens. Leaves who asks, and what an episode's outcome is, to episode.py.

What a call may decide: max_tokens, stop strings, its seed, tools, log-probs. Temperature and top_p are the run's: the
trainer must know the distribution; what was asked stands beside what was used in the episode's record. A call that the
engine or the client gave up in its middle is recorded as incomplete: nothing of it is trained.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from rockroll.engine.api import Engine, GenerateRequest, Generation, Piece
from rockroll.errors import EngineError, HostError, ModelServiceError, UsageError
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta
from rockroll.rollout.answering import Answering
from rockroll.rollout.journal import Entry, Journal
from rockroll.rollout.messages import Given
from rockroll.rollout.sample import TurnRecord
from rockroll.rollout.seed import derive
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.rollout.transcript import Prompt, Transcript, Turn
from rockroll.rollout.wishes import NO_WISHES, Sampling, Wishes

REFUSALS = 8
"""An agent that goes on asking after so many refusals is not going to stop: its episode is ended for it."""


class Dialogue:
    """One episode's calls to the model; `close` ends the ones under way and refuses any later.

    id: names the episode. seed: names its random draws; the i-th call's are named by (seed, i).
    on_turn: told the sampled tokens of each answer. journal: has each answer before it is returned.
    on_wait: told, whenever a call begins or ends, whether one is with the engine.
    """

    def __init__(
        self,
        id: str,
        tokenizer: ChatTokenizer,
        engine: Engine,
        sampling: Sampling,
        seed: int,
        on_turn: Callable[[int], None] = lambda _: None,
        journal: Journal | None = None,
        on_wait: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.id = id
        self.on_wait = on_wait
        self.transcript = Transcript(tokenizer)
        self.truncated: str | None = None
        """Why a call was refused for want of budget, as a sentence."""
        self.asked = 0
        """Calls that came in, the refused ones included."""
        self.over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        """Done when the episode cannot go on: with the engine's failure; None where an agent will not stop asking."""
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tokenizer, self._engine, self._sampling, self._seed = tokenizer, engine, sampling, seed
        self._on_turn = on_turn
        self._journal = journal
        self._journalled: dict[int, int] = {}
        """The number in the journal of each answered turn, by its identity: the transcript keeps all turns."""
        self._flying: set[asyncio.Future[Generation]] = set()
        self.record: list[TurnRecord] = []
        """Calls that reached the engine, in the order in which they ended."""
        self._left: list[tuple[int, int]] = []
        """Of calls whose client left: the place in `record`, and how many calls had come in by then."""
        self._refused = 0
        self._drawn = 0
        self._closed = False

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model knows."""
        return self._tokenizer.vocab_size

    @property
    def turns(self) -> int:
        """Calls that were answered."""
        return len(self.transcript.turns)

    @property
    def spent_tokens(self) -> int:
        """Sampled so far, what was thrown away included."""
        return self.transcript.sampled + sum(turn.thrown for turn in self.record)

    async def chat(self, request: ChatRequest, on_delta: Callable[[Delta], None] | None = None) -> ChatReply:
        """One call of an agent, as the relay brings it. Raises as `ask` does."""
        turn = await self.ask(request.messages, Wishes.of(request), on_delta)
        return ChatReply(
            text=turn.text,
            finish_reason=turn.finish_reason,
            prompt_tokens=turn.start,
            completion_tokens=turn.sampled,
            reasoning=turn.reasoning,
            tool_calls=list(turn.calls),
            stop=turn.stop,
            cached_tokens=turn.cached,
            logprobs=turn.token_logprobs,
        )

    def count(self, request: ChatRequest) -> int:
        """Tokens that the prompt of this request has. Raises ModelServiceError where it cannot be one."""
        return self._prompt(request.messages, Wishes.of(request)).length

    async def ask(
        self,
        messages: Sequence[Given],
        wishes: Wishes = NO_WISHES,
        on_delta: Callable[[Delta], None] | None = None,
    ) -> Turn:
        """The model's answer; `on_delta` is told it as it comes.

        Raises ModelServiceError where the call is refused or the engine fails.
        """
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
        prompt = self._prompt(messages, wishes)
        room = sampling.context_length - prompt.length
        if room < 1:
            raise self._truncate(
                400,
                "context_length_exceeded",
                f"this model's context is {sampling.context_length} tokens and the messages are {prompt.length}, "
                "which leaves none for an answer; send fewer",
            )
        request = GenerateRequest(
            id=f"{self.id}.{self._drawn}",
            prompt_ids=prompt.ids,
            max_tokens=min(sampling.max_tokens, room, wishes.max_tokens or sampling.max_tokens),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=derive(self._seed, "turn", self._drawn)
            if wishes.seed is None
            else derive(self._seed, "asked", wishes.seed, wishes.index),
            stop_ids=self._tokenizer.stop_ids,
            anew=sampling.anew,
        )
        self._drawn += 1
        answering = self._answering(prompt, wishes, on_delta)
        try:
            streams = on_delta is not None or bool(wishes.stop) or answering.single
            answer = answering.result(await self._generate(request, answering if streams else None))
            if self._closed:
                raise _refusal(410, "episode_ended", f"episode {self.id} ended while the model was answering")
            turn = self.transcript.record(prompt, answer)
        except ModelServiceError:
            raise
        except asyncio.CancelledError:
            if not self._closed:
                self._lose(prompt, answering, wishes, request, "the client left in the middle of the answer")
                self._left.append((len(self.record) - 1, self.asked))
            raise
        except Exception as error:
            self._lose(prompt, answering, wishes, request, f"the engine failed: {error}")
            self._end(error)
            raise _refusal(500, "engine_error", f"the engine failed: {error}", "server_error") from error
        self._note(turn, wishes, request, answer.thrown)
        self._on_turn(turn.sampled)
        if self._journal is not None and self._journal.mode != "off":
            await self._write(self._journal, turn)
        return turn

    def spent(self, message: str) -> None:
        """A call was refused before it came here, for want of the budget of its route: the episode is truncated. Told
        again, it ends: an agent that goes on asking is not going to stop."""
        if self.truncated == message:
            self._end(None)
        self.truncated = self.truncated or message

    def killed(self) -> None:
        """The agent was ended from outside: a call that it left and never made again was not given up by it."""
        for at, asked in self._left:
            if asked == self.asked:
                self.record[at] = msgspec.structs.replace(self.record[at], incomplete=None, finish_reason="killed")

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

    def _prompt(self, messages: Sequence[Given], wishes: Wishes) -> Prompt:
        """The ids to send. Raises ModelServiceError (400) for what the model's template cannot say."""
        style, tokenizer = self._tokenizer.style, self._tokenizer
        if wishes.prompt is not None:
            return self.transcript.text_prompt(wishes.prompt)
        forced = ""
        if wishes.tools and not (tokenizer.takes_tools and style.calls != "none"):
            raise self._refuse(
                400,
                "tools_not_supported",
                "this model's chat template has no tool calls; send the request without tools",
            )
        if wishes.tool_choice == "required" or wishes.tool_choice.startswith("="):
            name = wishes.tool_choice.removeprefix("=") if wishes.tool_choice.startswith("=") else None
            known = [tool.name for tool in wishes.tools]
            if not known or (name is not None and name not in known):
                raise self._refuse(
                    400,
                    "invalid_tool_choice",
                    f"tool_choice asks for one of the request's tools; got {name or 'any'} of {known}",
                )
            forced = style.opening(name, thinking=tokenizer.thinking)
        try:
            return self.transcript.prompt(messages, wishes.tools, forced)
        except UsageError as error:
            raise self._refuse(400, "invalid_messages", str(error)) from None

    def _answering(self, prompt: Prompt, wishes: Wishes, on_delta: Callable[[Delta], None] | None) -> Answering:
        return Answering(
            self._tokenizer,
            self.transcript.name_call,
            tools=wishes.tools if wishes.tools and wishes.tool_choice != "none" else None,
            stop=wishes.stop,
            single=bool(wishes.tools) and not wishes.parallel_tool_calls,
            forced=prompt.forced,
            raw=prompt.past is None,
            logprobs=wishes.logprobs,
            on_delta=on_delta,
            whole=self._sampling.anew,
        )

    async def _write(self, journal: Journal, turn: Turn) -> None:
        """Put the turn into the journal: what is new in it, so that a long conversation costs what it says."""
        number = self._journalled[id(turn)] = len(self._journalled)
        after = None if turn.parent is None else self._journalled.get(id(turn.parent))
        begin = 0 if turn.parent is None or after is None else turn.parent.end
        ids = turn.branch.ids
        entry = Entry(
            episode=self.id,
            number=number,
            after=after,
            new=ids[begin : turn.start],
            sampled=ids[turn.start : turn.end],
            logprobs=list(turn.logprobs),
            versions=list(turn.versions),
            finish_reason=turn.finish_reason,
            at=time.time(),
        )
        try:
            await journal.put(entry)
        except HostError as error:
            self._end(error)
            raise _refusal(500, "journal_failed", "the run could not keep this answer", "server_error") from error

    def _lose(self, prompt: Prompt, answering: Answering, wishes: Wishes, request: GenerateRequest, why: str) -> None:
        answer = answering.result(None)
        self._note(self.transcript.record(prompt, answer, why), wishes, request, answer.thrown)

    def _note(self, turn: Turn, wishes: Wishes, request: GenerateRequest, thrown: int) -> None:
        """Put the call into the episode's record: what was asked, and what was used where that differs."""
        asked: dict[str, Any] = {
            name: value
            for name in ("temperature", "top_p", "seed", "max_tokens")
            if (value := getattr(wishes, name)) is not None
        }
        if wishes.tool_choice != "auto":
            asked["tool_choice"] = wishes.tool_choice
        used = {name: getattr(request, name) for name in asked if hasattr(request, name)}
        self.record.append(
            TurnRecord(
                prompt_tokens=turn.start,
                sampled=turn.sampled,
                cached=turn.cached,
                finish_reason=turn.finish_reason,
                stop=turn.stop,
                tool_calls=len(turn.calls),
                asked=asked,
                used={name: value for name, value in used.items() if value != asked[name]},
                incomplete=turn.incomplete,
                thrown=thrown,
            )
        )

    async def _generate(self, request: GenerateRequest, reading: Answering | None) -> Generation | None:
        """The engine's answer, told to `reading` as it comes; None where that had all it wants before the engine ended.

        A call that `close` cancelled is refused, one whose caller is cancelled is cancelled.
        """
        loop = asyncio.get_running_loop()
        enough: asyncio.Future[None] = loop.create_future()

        def take(piece: Piece) -> None:
            assert reading is not None
            try:
                reading.take(piece)
            except Exception as error:  # noqa: BLE001  the engine's own code must not see it
                if not enough.done():
                    enough.set_exception(error)
            else:
                if reading.over and not enough.done():
                    enough.set_result(None)

        work = asyncio.ensure_future(
            self._engine.generate(request) if reading is None else self._engine.generate(request, take)
        )
        self.on_wait(True)
        self._flying.add(work)
        try:
            if reading is None:
                return await work
            await asyncio.wait((work, enough), return_when=asyncio.FIRST_COMPLETED)
            if enough.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                return enough.result()
            return work.result()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                raise
            if self._closed:
                raise _refusal(410, "episode_ended", f"episode {self.id} ended while the model was answering") from None
            raise EngineError("the engine cancelled a request that nobody had cancelled") from None
        finally:
            if not enough.cancel():
                enough.exception()  # told by another way: the call was cancelled, or the engine failed as well
            self._flying.discard(work)
            self.on_wait(bool(self._flying))

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
