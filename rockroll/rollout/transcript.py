"""What the model saw and said in one episode, token for token.

In: the messages of each model call, and what the engine sampled for it. Out: the ids to send, and at the end one
Sample for each branch of the conversation. Pure: no I/O, no clock. Leaves the template to tokenizer.py and the calls
to episode.py.

A call whose messages go on from an earlier call and its answer, word for word, is sent that call's ids, the sampled
ids and the tokens of what is new: what the engine sampled is never tokenized again. Any other history, edited or
fresh, begins a new branch from its own whole rendering. Nothing is guessed from similar text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rockroll.engine.api import Generation
from rockroll.errors import EngineError
from rockroll.rollout.sample import Sample
from rockroll.rollout.tokenizer import ChatTokenizer, Message


@dataclass(frozen=True, eq=False)
class Prompt:
    """One model call about to be made: its messages, its ids, and the turn it goes on from."""

    messages: list[dict[str, Any]]
    ids: list[int]
    parent: Turn | None


@dataclass(frozen=True, eq=False)
class Turn:
    """One model call that was answered."""

    prompt: Prompt
    generation: Generation
    text: str
    """The answer as the agent got it."""
    stopped: bool
    """The sampled ids end with a stop token."""
    history: list[dict[str, Any]] = field(repr=False)
    """The messages with the answer: what the next call must begin with to go on from here."""

    @property
    def ids(self) -> list[int]:
        """All ids up to the end of this answer."""
        return self.prompt.ids + self.generation.token_ids


class Transcript:
    """The turns of one episode, as a tree: prompt ── record ──► turn ── prompt ── record ──► turn …"""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self.turns: list[Turn] = []
        """In the order in which they were answered."""

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The ids to send for these messages. Raises UsageError where the chat template refuses them."""
        asked = [dict(message) for message in messages]
        parent = self._parent(asked)
        if parent is None:
            return Prompt(asked, self._tokenizer.render(asked), None)
        said, new = parent.prompt.messages, asked[len(parent.history) :]
        return Prompt(asked, parent.ids + self._tokenizer.after(said, new, stopped=parent.stopped), parent)

    def record(self, prompt: Prompt, generation: Generation) -> Turn:
        """Keep what the engine sampled for that prompt. Raises EngineError for a generation that is not whole."""
        ids, stops = generation.token_ids, self._tokenizer.stop_ids
        if generation.finish_reason == "abort":
            raise EngineError(
                f"a turn is recorded when it ended by itself; the engine gave it up after {len(ids)} tokens"
            )
        if not ids or not len(ids) == len(generation.logprobs) == len(generation.versions):
            raise EngineError(
                "every sampled token comes with its log-prob and weight version; got "
                f"{len(ids)} tokens, {len(generation.logprobs)} log-probs, {len(generation.versions)} versions"
            )
        if stray := [i for i in ids[:-1] if i in stops]:
            raise EngineError(f"a generation ends at its first stop token; token {stray[0]} stands before the last")
        text = self._tokenizer.decode(ids)
        history = [*prompt.messages, {"role": "assistant", "content": text}]
        turn = Turn(prompt, generation, text, ids[-1] in stops, history)
        self.turns.append(turn)
        return turn

    def samples(self) -> list[Sample]:
        """One for each branch, that is, for each turn that no other goes on from; in the order of their answers.

        A sampled token is trained once: where branches share turns, the first branch's mask has them, and in the
        others they are context.
        """
        continued = {id(turn.prompt.parent) for turn in self.turns if turn.prompt.parent}
        used: set[int] = set()
        return [self._sample(turn, used) for turn in self.turns if id(turn) not in continued]

    @property
    def sampled(self) -> int:
        """Tokens sampled in all turns."""
        return sum(len(turn.generation.token_ids) for turn in self.turns)

    def _parent(self, messages: list[dict[str, Any]]) -> Turn | None:
        """The turn that these messages go on from: the longest history that they begin with, the latest of equals."""
        best = None
        for turn in self.turns:
            length = len(turn.history)
            if length < len(messages) and messages[:length] == turn.history:
                best = turn if best is None or length >= len(best.history) else best
        return best

    def _sample(self, leaf: Turn, used: set[int]) -> Sample:
        ids = leaf.ids
        mask, logprobs, versions = [False] * len(ids), [0.0] * len(ids), [-1] * len(ids)
        turn: Turn | None = leaf
        while turn is not None:
            if id(turn) not in used:
                used.add(id(turn))
                start, end = len(turn.prompt.ids), len(turn.ids)
                mask[start:end] = [True] * (end - start)
                logprobs[start:end] = turn.generation.logprobs
                versions[start:end] = turn.generation.versions
            turn = turn.prompt.parent
        return Sample(ids, mask, logprobs, versions)
