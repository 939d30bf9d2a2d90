"""What the model saw and said in one episode, token for token.

In: the messages of each model call, and the answer that was sampled for it. Out: the ids to send, and at the end one
Sample for each branch of the conversation. Pure: no I/O, no clock. Leaves what follows an answer to continuation.py,
what a message means to messages.py and the calls to dialogue.py.

A call goes on from an earlier turn where its messages begin with that turn's messages, its answer, and something new.
It is sent that turn's ids, the sampled ids and the tokens of what is new: what the engine sampled is never tokenized
again, nor is a content that was given as token ids. Any other history, edited, cut, compacted or fresh, begins a new
branch from its own whole rendering; so does one that the template would show otherwise than it was (continuation.py).
Nothing is guessed from similar text:

    a message that no turn answered     is the same where it is equal in every field
    a turn's answer, sent back          is the same where its content is the same text; its calls have the same names
                                        and, as JSON values, arguments; its reasoning is the same or was left out; and
                                        its calls have the ids we gave them where the template shows ids
    two turns that answer so            count as one where their reasoning is the same too (the later is taken),
                                        else as none: which one was meant cannot be known
    the tools                           are equal in every field
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal

from rockroll.engine.api import Generation
from rockroll.env.api import Tokens
from rockroll.errors import EngineError, UsageError
from rockroll.model_service.wire import Tool
from rockroll.rollout import messages as said
from rockroll.rollout.answer import Call
from rockroll.rollout.answering import Answer, Answering
from rockroll.rollout.continuation import Past, Shape
from rockroll.rollout.messages import Given
from rockroll.rollout.sample import Sample, SampledTurn
from rockroll.rollout.tokenizer import ChatTokenizer


class Branch:
    """Ids and messages of one line of turns, each kept once however many turns there are.

    ids: a list, since engines take one: a copy of it costs a tenth of a list made from an array. Its members are
    shared (ChatTokenizer.shared).
    """

    def __init__(self, ids: list[int], messages: list[Given]) -> None:
        self.ids, self.messages = ids, messages


class Prompt:
    """One model call about to be made: its messages, its ids, and the turn it goes on from."""

    def __init__(
        self, messages: list[Given], parent: Turn | None, new: list[int], past: Past | None, tools: Sequence[Tool],
        forced: str,
    ) -> None:  # fmt: skip
        self.messages, self.parent, self.new = messages, parent, new
        self.past, self.tools, self.forced = past, tools, forced
        """past: None for text to go on from, which no later call continues."""

    @property
    def length(self) -> int:
        """Number of ids."""
        return self.cached + len(self.new)

    @property
    def cached(self) -> int:
        """Of those, the ones that stood in the turn it goes on from."""
        return self.parent.end if self.parent else 0

    @property
    def ids(self) -> list[int]:
        ids = self.parent.ids if self.parent else []
        ids += self.new
        return ids


class Turn:
    """One model call that was answered, wholly or not."""

    def __init__(self, prompt: Prompt, answer: Answer, branch: Branch, shows_ids: bool, incomplete: str | None) -> None:
        self.parent, self.tools, self.past = prompt.parent, prompt.tools, prompt.past
        self.start, self.count = prompt.length, len(prompt.messages)
        self.end = self.start + len(answer.ids)
        self.text = answer.content
        """The answer as the agent got it, without reasoning and calls."""
        self.reasoning, self.calls, self.stop = answer.reasoning, answer.calls, answer.stop
        self.finish_reason: Literal["stop", "length", "tool_calls"] = answer.finish_reason
        self.token_logprobs = answer.token_logprobs
        self.logprobs, self.versions = answer.logprobs, answer.versions
        self.stopped = answer.stopped
        """The sampled ids end with a stop token."""
        self.incomplete = incomplete
        """Why this turn must not be trained; None: it may."""
        self.branch = branch
        self.number = -1
        """Its place among the turns that may be trained."""
        self._shows_ids = shows_ids

    @property
    def sampled(self) -> int:
        return self.end - self.start

    @property
    def cached(self) -> int:
        """Ids of the prompt that stood in the turn before."""
        return self.parent.end if self.parent else 0

    @property
    def ids(self) -> list[int]:
        """All ids up to the end of this answer."""
        return self.branch.ids[: self.end]

    @property
    def history(self) -> list[Any]:
        """The messages with the answer: what the next call begins with to go on from here."""
        return self.branch.messages[: self.count + 1]

    @property
    def state(self) -> str:
        """Names what was said right before this answer."""
        before = said.parts(self.branch.messages[self.count - 1]) if self.count else self.branch.ids[: self.start]
        return blake2b(repr(before).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    @property
    def shape(self) -> Shape:
        return Shape(bool(self.reasoning), bool(self.text), len(self.calls))

    def is_answered_by(self, message: Given) -> bool:
        """Whether a message is this turn's answer, sent back; by the rule above."""
        reasoning, content, calls = said.parts(message)
        return (
            reasoning in ("", self.reasoning)
            and said.meaning(content, calls) == said.meaning(self.text, self.calls)
            and (not self._shows_ids or [c.id for c in calls] == [c.id for c in self.calls])
        )


class Transcript:
    """The turns of one episode, as a tree: prompt ── record ──► turn ── prompt ── record ──► turn …"""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self.turns: list[Turn] = []
        """Those that may be trained, in the order in which they were answered."""
        self.incomplete: list[Turn] = []
        """The others."""
        self._answers: dict[tuple[Any, ...], list[Turn]] = {}
        """By the answer's place in its history and its meaning."""
        self._call_ids: set[str] = set()

    def prompt(self, messages: Sequence[Given], tools: Sequence[Tool] = (), forced: str = "") -> Prompt:
        """The ids to send for these messages. Raises UsageError where the chat template refuses them.

        forced: text that the answer is made to begin with; it is part of the prompt, hence never trained.
        """
        asked, tools = list(messages), list(tools)
        begin = self._encode(forced) if forced else []
        parent = self._parent(asked, tools)
        if parent is not None and parent.past is not None:
            new = [said.template_form(message) for message in asked[parent.count + 1 :]]
            answer = (parent.reasoning, parent.text, [Call(c.name, c.arguments) for c in parent.calls])
            follows = self._tokenizer.continuation.after(parent.past, answer, new)
            if follows is not None:
                # An answer that was cut is closed as the template closes it; nobody sampled that: it is not trained.
                ids = [*([] if parent.stopped else [follows.stop_id]), *self._filled(follows.text, new), *begin]
                return Prompt(asked, parent, ids, parent.past.then(parent.shape, new), tools, forced)
        forms = [said.template_form(message) for message in asked]
        ids = self._filled(self._tokenizer.text(forms, tools=said.template_tools(tools) or None), forms)
        return Prompt(asked, None, ids + begin, Past.of(forms, bool(tools)), tools, forced)

    def text_prompt(self, text: str) -> Prompt:
        """The ids of a text to go on from, to which no template is applied: a branch of its own."""
        return Prompt([], None, self._encode(text), None, [], "")

    def name_call(self, call: Call) -> str:
        """The id of a call: the model's own where it is new and of the kind that templates take, else one of ours."""
        id = call.id
        if not (len(id) == 9 and id.isalnum()) or id in self._call_ids:
            id = f"call{len(self._call_ids):05d}"
        while id in self._call_ids:
            id = f"call{int(id[4:]) + 1:05d}"
        self._call_ids.add(id)
        return id

    def record(self, prompt: Prompt, sampled: Generation | Answer, incomplete: str | None = None) -> Turn:
        """Keep what the engine sampled for that prompt. Raises EngineError for a generation that is not whole.

        incomplete: why it must not be trained; such a turn, and whatever goes on from it, is in no Sample.
        """
        answer = self._read(prompt, sampled) if isinstance(sampled, Generation) else sampled
        if incomplete is None:
            self._check(answer)
            if prompt.parent and prompt.parent.incomplete:
                incomplete = f"it goes on from an incomplete turn: {prompt.parent.incomplete}"
        message = said.answer_message(
            prompt.messages[-1] if prompt.messages else None, answer.reasoning, answer.content, answer.calls
        )
        turn = Turn(prompt, answer, self._extend(prompt, message), self._tokenizer.shows_call_ids, incomplete)
        turn.branch.ids += self._tokenizer.shared(answer.ids)
        turn.number = len(self.turns) if incomplete is None else -1
        (self.turns if incomplete is None else self.incomplete).append(turn)
        if prompt.past is not None:
            key = (turn.count, *said.meaning(turn.text, turn.calls))
            self._answers.setdefault(key, []).append(turn)
        return turn

    def samples(self) -> list[Sample]:
        """One for each branch, that is, for each turn that no other goes on from; in the order of their answers.

        A sampled token is trained once: where branches share turns, the first branch's mask has them, and in the
        others they are context. Incomplete turns are in none.
        """
        continued = {id(turn.parent) for turn in self.turns if turn.parent}
        used: set[int] = set()
        return [self._sample(turn, used) for turn in self.turns if id(turn) not in continued]

    @property
    def sampled(self) -> int:
        """Tokens sampled in all turns."""
        return sum(turn.sampled for turn in self.turns)

    def _filled(self, text: str, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids of a template's text of these messages; where a content was given as ids, these and no others."""
        ids: list[int] = []
        given = [content for message in messages if isinstance(content := message.get("content"), Tokens)]
        for content in given:
            before, found, text = text.partition(content)
            if not found:
                raise UsageError("the chat template leaves out a message of token ids, or moves it")
            ids += self._encode(before) + self._tokenizer.shared(content.ids)
        if any(content in text for content in given):
            raise UsageError("the chat template says a message of token ids twice")
        return ids + self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.shared(self._tokenizer.encode(text))

    def _parent(self, messages: list[Given], tools: list[Tool]) -> Turn | None:
        """The turn that these messages go on from; the one with the longest history, the latest of equals."""
        for at in range(len(messages) - 2, -1, -1):
            if said.role(messages[at]) != "assistant":
                continue
            _, content, calls = said.parts(messages[at])
            known = self._answers.get((at, *said.meaning(content, calls)), ())
            fit = [t for t in known if t.tools == tools and t.is_answered_by(messages[at]) and _same(t, messages)]
            if not fit:
                continue
            ids = [call.id for call in calls]
            fit = [t for t in fit if calls and [call.id for call in t.calls] == ids] or fit
            if len({turn.reasoning for turn in fit}) > 1:
                return None
            parent = fit[-1]
            # As the client writes it from now on: the next comparison is one of equal objects.
            parent.branch.messages[at] = messages[at]
            return parent
        return None

    def _extend(self, prompt: Prompt, answer: Given) -> Branch:
        """The branch that the turn goes into: its parent's, if that has not grown since; else one of its own."""
        parent = prompt.parent
        if parent is None:
            return Branch(list(prompt.new), [*prompt.messages, answer])
        branch = parent.branch
        if len(branch.ids) > parent.end:
            branch = Branch(branch.ids[: parent.end], branch.messages[: parent.count + 1])
        branch.ids.extend(prompt.new)
        branch.messages += [*prompt.messages[parent.count + 1 :], answer]
        return branch

    def _read(self, prompt: Prompt, generation: Generation) -> Answer:
        reading = Answering(
            self._tokenizer,
            self.name_call,
            tools=prompt.tools or None,
            forced=prompt.forced,
            raw=prompt.past is None,
        )
        return reading.result(generation)

    def _check(self, answer: Answer) -> None:
        ids, stops = answer.ids, self._tokenizer.stop_ids
        if not ids:
            raise EngineError(
                "every sampled token comes with its log-prob and weight version; got "
                f"{len(ids)} tokens, {len(answer.logprobs)} log-probs, {len(answer.versions)} versions"
            )
        if stray := [i for i in ids[:-1] if i in stops]:
            raise EngineError(f"a generation ends at its first stop token; token {stray[0]} stands before the last")

    def _sample(self, leaf: Turn, used: set[int]) -> Sample:
        ids = leaf.ids
        mask, logprobs, versions = [False] * len(ids), [0.0] * len(ids), [-1] * len(ids)
        turns: list[SampledTurn] = []
        turn: Turn | None = leaf
        while turn is not None:
            turns.append(SampledTurn(turn.number, turn.start, turn.end, turn.state))
            if id(turn) not in used:
                used.add(id(turn))
                mask[turn.start : turn.end] = [True] * turn.sampled
                logprobs[turn.start : turn.end] = turn.logprobs
                versions[turn.start : turn.end] = turn.versions
            turn = turn.parent
        return Sample(ids, mask, logprobs, versions, turns[::-1])


def _same(turn: Turn, messages: list[Given]) -> bool:
    """Whether the messages before a turn's answer are those that it answered."""
    ours = turn.branch.messages
    if ours[: turn.count] == messages[: turn.count]:
        return True
    answers: dict[int, Turn] = {}
    before = turn.parent
    while before is not None:
        answers[before.count], before = before, before.parent
    return all(
        ours[at] == messages[at]
        or (at in answers and said.role(messages[at]) == "assistant" and answers[at].is_answered_by(messages[at]))
        for at in range(turn.count)
    )
