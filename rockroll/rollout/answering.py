"""One answer while it comes: sampled tokens in, what they say out.

In: pieces of a generation, and what the request wants of the answer. Out: Deltas for a client that streams, and the
Answer. Decides, token by token, where a stop string or a single call ends the answer: where that is depends on the
tokens alone, not on the pieces they come in. Leaves sampling to the engine and remembering to transcript.py.

    tokens ──► text (whole characters only) ──► AnswerParser ──► Delta*, Answer
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rockroll.engine.api import Generation, Piece
from rockroll.errors import EngineError
from rockroll.model_service.wire import Delta, TokenLogprob, Tool, ToolCall
from rockroll.rollout import xml_calls
from rockroll.rollout.answer import AnswerParser, Call, Said
from rockroll.rollout.tokenizer import ChatTokenizer


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """What was sampled and what it says."""

    content: str
    reasoning: str
    calls: tuple[ToolCall, ...]
    stop: str | None
    """The stop string that ended it."""
    ids: array[int]
    """Sampled; the last may be a stop token. A stop string's tokens are here, and all that the last of them says."""
    logprobs: array[float]
    versions: array[int]
    stopped: bool
    """The ids end with a stop token."""
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_logprobs: list[TokenLogprob] | None
    thrown: int
    """Sampled before it began anew."""


class Answering:
    """Reads one answer. `take` pieces until `over` or the engine has ended it; then `result`.

    tools: None: calls are not looked for. forced: text at the answer's beginning that was put into the prompt.
    name_call: the id of a call that the model wrote. stop, single: as AnswerParser has them. whole: deltas are told
    with the result, since the answer may begin anew: what a client has heard cannot be taken back.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        name_call: Callable[[Call], str],
        *,
        tools: Sequence[Tool] | None = None,
        stop: Sequence[str] = (),
        single: bool = False,
        forced: str = "",
        raw: bool = False,
        logprobs: bool = False,
        on_delta: Callable[[Delta], None] | None = None,
        whole: bool = False,
    ) -> None:
        self._tokenizer, self._name_call, self._hearer = tokenizer, name_call, on_delta
        self._held: list[Delta] = []
        self._on_delta = self._held.append if on_delta and whole else on_delta
        self._new_parser = lambda: AnswerParser(
            tokenizer.style if not raw else type(tokenizer.style)(),
            tools=None if tools is None else frozenset(tool.name for tool in tools),
            types=xml_calls.types((tool.name, tool.parameters) for tool in tools)
            if tools and tokenizer.style.calls == "xml"
            else None,
            stop=stop,
            thinking=tokenizer.thinking and not raw,
            single=single,
        )
        self.single = single
        self._cuts = bool(stop) or single
        self._wanted = logprobs
        self._stop_ids = frozenset(tokenizer.stop_ids)
        self._forced = forced
        self._thrown = 0
        self._begin()

    def _begin(self) -> None:
        self._parser, self._text = self._new_parser(), _Text(self._tokenizer)
        self._ids, self._logprobs, self._versions = array("i"), array("d"), array("i")
        self._calls: list[ToolCall] = []
        self._token_logprobs: list[TokenLogprob] = []
        self._told = 0
        """Token log-probs that a delta has carried."""
        self.over = False
        """The answer has ended: what the engine samples now is not part of it."""
        self._held.clear()
        if self._forced:
            self._tell(self._parser.feed(self._forced))

    @property
    def sampled(self) -> int:
        """Tokens taken so far."""
        return len(self._ids)

    def take(self, piece: Piece) -> None:
        """The next tokens, or the first ones of an answer that begins anew. EngineError where some are missing: they
        are never guessed."""
        if self.over:
            return
        if piece.start == 0 and self._ids:
            self._thrown += len(self._ids)
            self._begin()
        if piece.start != len(self._ids):
            raise EngineError(
                f"the pieces of an answer follow one another; token {len(self._ids)} was to come and {piece.start} came"
            )
        if not len(piece.token_ids) == len(piece.logprobs) == len(piece.versions):
            raise EngineError(
                "every sampled token comes with its log-prob and weight version; got "
                f"{len(piece.token_ids)} tokens, {len(piece.logprobs)} log-probs, {len(piece.versions)} versions"
            )
        step = 1 if self._cuts else max(1, len(piece.token_ids))
        for at in range(0, len(piece.token_ids), step):
            ids = piece.token_ids[at : at + step]
            self._ids.extend(ids)
            self._logprobs.extend(piece.logprobs[at : at + step])
            self._versions.extend(piece.versions[at : at + step])
            self._read(ids, piece.logprobs[at : at + step])
            if self._parser.over:
                self.over = True
                break

    def result(self, generation: Generation | None) -> Answer:
        """The whole. generation: what the engine says of it; None where the answer was over before the engine was.

        EngineError where it was given up, and where its tokens are not those that were taken.
        """
        if generation is not None:
            if not self._ids and not self.over:
                self.take(
                    Piece(
                        start=0,
                        token_ids=generation.token_ids,
                        logprobs=generation.logprobs,
                        versions=generation.versions,
                    )
                )
            if generation.finish_reason == "abort" and not self.over:
                raise EngineError(
                    "a turn is recorded when it ended by itself; "
                    f"the engine gave it up after {len(generation.token_ids)} tokens"
                )
            taken = len(self._ids)
            if list(self._ids) != generation.token_ids[:taken] or (
                not self.over and taken != len(generation.token_ids)
            ):
                raise EngineError(
                    f"the pieces of an answer are its tokens; {taken} came in pieces and they are not the first of "
                    f"the {len(generation.token_ids)} that the engine sampled"
                )
        if not self._parser.over:
            said = self._parser.feed(self._text.rest())
            last = self._parser.finish()
            self._tell(Said(said.text + last.text, said.reasoning + last.reasoning, said.calls + last.calls), last=True)
        stopped = bool(self._ids) and self._ids[-1] in self._stop_ids
        ended = self.over or (generation is not None and generation.finish_reason == "stop")
        parser = self._parser
        if self._hearer is not None and self._hearer is not self._on_delta:
            for delta in self._held:
                self._hearer(delta)
        return Answer(
            content=parser.content,
            reasoning=parser.reasoning,
            calls=tuple(self._calls),
            stop=parser.stop,
            ids=self._ids,
            logprobs=self._logprobs,
            versions=self._versions,
            stopped=stopped,
            finish_reason="tool_calls" if self._calls else "stop" if ended else "length",
            token_logprobs=self._token_logprobs if self._wanted else None,
            thrown=max(self._thrown, generation.thrown if generation is not None else 0),
        )

    def _read(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        said = ids[:-1] if ids and ids[-1] in self._stop_ids else ids
        if self._wanted:
            for id, logprob in zip(said, logprobs, strict=False):
                data = self._tokenizer.token_bytes(id)
                self._token_logprobs.append(
                    TokenLogprob(token=data.decode(errors="replace"), bytes=list(data), logprob=logprob)
                )
        if self._on_delta is None and not self._cuts:
            self._text.keep(said)  # read at once in the end: a token at a time costs more
        else:
            self._tell(self._parser.feed(self._text.push(said)))

    def _tell(self, said: Said, *, last: bool = False) -> None:
        calls = [ToolCall(id=self._name_call(call), name=call.name, arguments=call.arguments) for call in said.calls]
        first = len(self._calls)
        self._calls += calls
        if self._on_delta is None:
            return
        new = self._token_logprobs[self._told :]
        if said.text or said.reasoning or (new and (last or calls)):
            self._told += len(new)
            self._on_delta(Delta(text=said.text, reasoning=said.reasoning, logprobs=new))
        for number, call in enumerate(calls, first):
            self._on_delta(Delta(tool=number, tool_id=call.id, name=call.name, arguments=call.arguments))


class _Text:
    """Ids as text, as they come: what is told is whole characters, and joined it is the decoding of all ids."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._decode = tokenizer.plain
        self._ids: list[int] = []
        self._begun, self._told = 0, 0
        """Ids before `_told` are told; those from `_begun` on are decoded with the next, which may depend on them."""

    def keep(self, ids: Sequence[int]) -> None:
        self._ids += ids

    def push(self, ids: Sequence[int]) -> str:
        self._ids += ids
        text = self._new()
        if text.endswith("\ufffd") or not text:  # perhaps a character whose other bytes are still to come
            return ""
        self._begun, self._told = self._told, len(self._ids)
        return text

    def rest(self) -> str:
        text = self._new()
        self._begun, self._told = self._told, len(self._ids)
        return text

    def _new(self) -> str:
        if self._told == len(self._ids):
            return ""
        before = self._decode(self._ids[self._begun : self._told]) if self._begun < self._told else ""
        return self._decode(self._ids[self._begun :])[len(before) :]
