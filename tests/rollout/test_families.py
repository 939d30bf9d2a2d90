"""Transcripts of real families: their own chat templates, tools, thoughts, and clients that do as they like."""

from __future__ import annotations

import json
import os
import statistics
import string
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from rockroll.engine.api import Generation
from rockroll.errors import UsageError
from rockroll.model_service.wire import Message, Tool, ToolCall
from rockroll.rollout import messages as forms
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.rollout.transcript import Prompt, Transcript, Turn

from .families import FAMILIES, chat_tokenizer, written

PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
EXAMPLES = int(os.environ.get("ROCKROLL_EXAMPLES", "12"))
"""Of each family and property; a few hundred take minutes."""
quick = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
plain = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<>[]{}|"), max_size=16)
words = plain.map(str.strip).filter(bool)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(string.ascii_letters), inner, max_size=2),
    max_leaves=4,
)
TOOLS = [
    Tool(name="look", description="Looks.", parameters={"type": "object", "properties": {"path": {"type": "string"}}}),
    Tool(name="run", description="Runs it.", parameters={"type": "object", "properties": {}}),
]


def sampled(tokenizer: ChatTokenizer, ids: list[int], version: int = 0) -> Generation:
    return Generation(
        token_ids=ids,
        logprobs=[-0.5 - i for i in range(len(ids))],
        versions=[version] * len(ids),
        finish_reason="stop" if ids[-1] in tokenizer.stop_ids else "length",
    )


def user(text: str) -> Message:
    return Message("user", text)


def sent_back(turn: Turn, *, reasoning: bool = True) -> Message:
    """As a client sends an answer back, its arguments written anew."""
    calls = [
        ToolCall(id=c.id, name=c.name, arguments=json.dumps(json.loads(c.arguments), separators=(",", ":")))
        for c in turn.calls
    ]
    return Message("assistant", turn.text, turn.reasoning if reasoning else "", calls)


def whole(tokenizer: ChatTokenizer, messages: list[Message], tools: list[Tool]) -> list[int]:
    rendered = [forms.template_form(message) for message in messages]
    return tokenizer.render(rendered, tools=forms.template_tools(tools) or None)


class Talk:
    """One conversation of a family, whose client edits nothing."""

    def __init__(self, name: str, data: st.DataObject) -> None:
        self.name, self.family, self.tokenizer = name, FAMILIES[name], chat_tokenizer(name)
        self.draw = data.draw
        self.transcript = Transcript(self.tokenizer)
        can = self.tokenizer.takes_tools and self.tokenizer.style.calls != "none"
        self.tools = TOOLS if can and self.draw(st.booleans(), label="tools") else []
        system = self.family.system and self.draw(st.booleans(), label="system")
        self.messages = [Message("system", "You help."), user(self.draw(words))] if system else [user(self.draw(words))]
        self.told = list(self.messages)
        """As the client writes them; `messages` is what the model said and heard in full."""

    def answer(self, prompt: Prompt) -> Turn:
        draw, style = self.draw, self.tokenizer.style
        calls = []
        if self.tools and draw(st.booleans(), label="calls"):
            for i in range(draw(st.integers(1, self.family.calls_at_once))):
                value = words if style.calls == "xml" else values  # there, all is text that no definition says more of
                arguments = draw(st.dictionaries(st.sampled_from(["path", "x"]), value, max_size=2))
                # Spaced as the template's tojson does.
                calls.append(
                    ToolCall(
                        id=f"c{len(self.transcript.turns):04d}{i:04d}",
                        name=draw(st.sampled_from(["look", "run"])),
                        arguments=json.dumps(arguments, ensure_ascii=False),
                    )
                )
        reasoning = draw(words) if style.reasoning and (self.name == "qwq" or draw(st.booleans())) else ""
        content = draw(words) if not calls or (style.calls in ("hermes", "xml") and draw(st.booleans())) else ""
        text = written(self.name, reasoning, content, calls)
        ids = self.tokenizer.encode(text)
        assume(self.tokenizer.encode(self.tokenizer.plain(prompt.ids) + text) == prompt.ids + ids)
        turn = self.transcript.record(prompt, sampled(self.tokenizer, [*ids, self.tokenizer.stop_ids[0]]))
        assert (turn.reasoning, turn.text) == (reasoning, content)
        assert [(c.name, c.arguments) for c in turn.calls] == [(c.name, c.arguments) for c in calls]
        return turn

    def go_on(self, turn: Turn) -> None:
        mine = Message("assistant", turn.text, turn.reasoning, list(turn.calls))
        new = [Message("tool", self.draw(words), tool_call_id=call.id) for call in turn.calls]
        if not new:
            new = [user(text) for text in self.draw(st.lists(words, min_size=1, max_size=1 if self.alternating else 2))]
        self.messages += [mine, *new]
        self.told += [sent_back(turn, reasoning=self.draw(st.booleans())), *new]

    @property
    def alternating(self) -> bool:
        return self.family.alternating


@pytest.mark.parametrize("name", FAMILIES)
@quick
@given(data=st.data())
def test_an_unedited_history_is_sent_as_a_whole_render_would_be(name: str, data: st.DataObject) -> None:
    talk = Talk(name, data)
    tokenizer, transcript = talk.tokenizer, talk.transcript
    for _ in range(data.draw(st.integers(1, 5), label="turns")):
        prompt = transcript.prompt(talk.told, talk.tools)
        if prompt.parent is None:
            talk.messages = list(talk.told)  # a branch begins: from here on the past is what the client wrote
        assert prompt.ids == whole(tokenizer, talk.messages, talk.tools)
        talk.go_on(talk.answer(prompt))
    _check_samples(transcript, tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
@quick
@given(data=st.data())
def test_whatever_clients_do_the_samples_are_what_the_engine_saw_and_said(name: str, data: st.DataObject) -> None:
    """Answers of any ids, half characters and unknown calls among them, stopped or cut; calls that go on from any
    earlier turn, edit it, forget its beginning, or start a conversation beside it."""
    family, tokenizer = FAMILIES[name], chat_tokenizer(name)
    transcript = Transcript(tokenizer)
    specials = len(family.specials)
    token = st.integers(specials, tokenizer.vocab_size - 1)
    tools = TOOLS if tokenizer.takes_tools and tokenizer.style.calls != "none" and data.draw(st.booleans()) else []
    for version in range(data.draw(st.integers(1, 6), label="calls")):
        how = data.draw(st.sampled_from(["go on", "edit", "forget", "fresh"])) if transcript.turns else "fresh"
        messages: list[Any] = [user(data.draw(words))]
        edited = 1000
        if how != "fresh":
            turn = data.draw(st.sampled_from(transcript.turns))
            history = [*turn.history[:-1], sent_back(turn, reasoning=data.draw(st.booleans()))]
            if how == "edit":
                edited = data.draw(st.integers(0, len(history) - 1))
                old = history[edited]
                history[edited] = Message(old.role, old.content + "!", "", old.tool_calls, old.tool_call_id)
            elif how == "forget":
                history = history[2:]
            results = [Message("tool", data.draw(words), tool_call_id=call.id) for call in turn.calls]
            messages = [*history, *(results or [user(data.draw(words))])]
        try:
            prompt = transcript.prompt(messages, tools)
        except UsageError:
            continue  # the family has no such conversation
        if prompt.parent is None:
            assert prompt.ids == whole(tokenizer, messages, tools)
        else:
            assert prompt.parent.count < edited, "it goes on from before the edit, if at all"
            assert prompt.ids[: prompt.parent.end] == prompt.parent.ids
        ids = data.draw(st.lists(token, min_size=1, max_size=5))
        if data.draw(st.booleans(), label="a call"):
            text = written(name, "", "", [ToolCall(id="abcdefghi", name="look", arguments='{"path": "x"}')])
            ids += tokenizer.encode(text)
        if data.draw(st.booleans(), label="stopped"):
            ids = [*ids, tokenizer.stop_ids[0]]
        transcript.record(prompt, sampled(tokenizer, ids, version))
    _check_samples(transcript, tokenizer)


def _check_samples(transcript: Transcript, tokenizer: ChatTokenizer) -> None:
    """Masks cover exactly the sampled tokens, log-probs line up, nothing is trained twice."""
    samples = transcript.samples()
    assert sum(sample.sampled for sample in samples) == transcript.sampled
    continued = {id(turn.parent) for turn in transcript.turns}
    leaves = [turn for turn in transcript.turns if id(turn) not in continued]
    for sample, last in zip(samples, leaves, strict=True):
        leaf: Turn | None = last
        assert sample.ids == last.ids
        assert len(sample.ids) == len(sample.mask) == len(sample.logprobs) == len(sample.versions)
        covered: set[int] = set()
        while leaf is not None:
            assert leaf.ids == sample.ids[: leaf.end]
            place = range(leaf.start, leaf.end)
            covered |= set(place)
            trained = {sample.mask[i] for i in place}
            assert len(trained) == 1, "a turn is trained whole or not at all"
            if trained == {True}:
                assert sample.logprobs[leaf.start : leaf.end] == leaf.logprobs.tolist()
                assert sample.versions[leaf.start : leaf.end] == leaf.versions.tolist()
            leaf = leaf.parent
        for i, masked in enumerate(sample.mask):
            assert not masked or i in covered, "nothing is trained that was not sampled"
            assert masked or (sample.logprobs[i], sample.versions[i]) == (0.0, -1)


TURNS = 200


def long_talk(tokenizer: ChatTokenizer, turns: int) -> tuple[Transcript, list[Message], list[float], list[float]]:
    """An agent of so many turns: a thought in words, a call, its result; with the processor time of each turn, first
    what the transcript takes, then what handing its ids to the engine adds."""
    transcript = Transcript(tokenizer)
    new = [Message("system", "You fix the tests."), user("Make them pass.")]
    messages: list[Message] = []
    kept, handed = [], []
    for number in range(turns):
        # as the relay hands them over: the new ones are, the others are those of the calls before
        messages = [*messages, *msgspec.msgpack.decode(msgspec.msgpack.encode(new), type=list[Message])]
        begun = time.process_time()
        prompt = transcript.prompt(messages, TOOLS)
        middle = time.process_time()
        ids = prompt.ids
        between = time.process_time()
        arguments = json.dumps({"path": f"src/part_{number}.py", "lines": [number, number + 40]})
        text = written("qwen2.5", "", f"Now part {number}.", [ToolCall(id="", name="look", arguments=arguments)])
        generation = sampled(tokenizer, [*tokenizer.encode(text), tokenizer.stop_ids[0]])
        assert len(ids) == prompt.length
        again = time.process_time()
        turn = transcript.record(prompt, generation)
        kept.append(middle - begun + time.process_time() - again)
        handed.append(between - middle)
        (call,) = turn.calls
        new = [sent_back(turn), Message("tool", f"{number} lines\n" * 5, tool_call_id=call.id)]
    return transcript, [*messages, *new], kept, handed


def test_two_hundred_turns_are_one_whole_render_and_the_last_costs_what_the_first_did() -> None:
    tokenizer = chat_tokenizer("qwen2.5")
    long_talk(tokenizer, 20)  # warm
    runs = [long_talk(tokenizer, TURNS) for _ in range(3)]
    transcript, messages, _, _ = runs[0]
    (sample,) = transcript.samples()
    last = transcript.turns[-1]
    assert transcript.prompt(messages, TOOLS).parent is last
    full = [Message("assistant", t.text, t.reasoning, list(t.calls)) for t in transcript.turns]
    said = iter(full)
    exact = [next(said) if m.role == "assistant" else m for m in messages]
    for message, turn in zip([m for m in exact if m.role == "assistant"], transcript.turns, strict=True):
        assert [c.name for c in message.tool_calls] == [c.name for c in turn.calls]
    assert transcript.prompt(messages, TOOLS).ids == whole(tokenizer, exact, TOOLS)
    assert sample.sampled == transcript.sampled == sum(sample.mask)
    early, late = (1e6 * min(statistics.median(kept[at : at + 20]) for _, _, kept, _ in runs) for at in (1, TURNS - 20))
    ids = 1e6 * min(statistics.median(handed[TURNS - 20 :]) for _, _, _, handed in runs)
    print(
        f"\n{TURNS} turns, {len(sample.ids)} ids equal one whole render; CPU of a turn: {early:.0f} µs at 2 to 21, "
        f"{late:.0f} µs at {TURNS - 19} to {TURNS} ({late / early:.2f}); a list of all ids: {ids:.0f} µs"
    )
    assert late < 2 * early, "a turn must not cost what its history does; a quiet machine shows far less"


@pytest.mark.slow
def test_256_conversations_of_100_turns_stay_under_a_gibibyte() -> None:
    tokenizer = chat_tokenizer("qwen2.5")
    long_talk(tokenizer, 20)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    kept = [long_talk(tokenizer, 100)[0] for _ in range(256)]
    talking = resident() - before
    samples = [sample for transcript in kept for sample in transcript.samples()]
    ended = resident() - before
    tokens = sum(len(sample.ids) for sample in samples)
    print(f"\n256 x 100 turns, {tokens} tokens: {talking / 2**20:.0f} MiB, with their samples {ended / 2**20:.0f} MiB")
    assert ended < 2**30


def test_a_thought_that_qwen3_strips_begins_a_branch_and_is_trained_once() -> None:
    tokenizer = chat_tokenizer("qwen3")
    transcript = Transcript(tokenizer)

    def say(prompt: Prompt, *parts: Any) -> Turn:
        ids = [*tokenizer.encode(written("qwen3", *parts)), tokenizer.stop_ids[0]]
        return transcript.record(prompt, sampled(tokenizer, ids))

    call = ToolCall(id="", name="look", arguments='{"path": "x"}')
    first = say(transcript.prompt([user("a")], TOOLS), "hm", "", [call])
    after_tool = [user("a"), sent_back(first), Message("tool", "no", tool_call_id=first.calls[0].id)]
    second_prompt = transcript.prompt(after_tool, TOOLS)
    assert second_prompt.parent is first, "between tools the family keeps its thoughts"
    second = say(second_prompt, "so", "It is not there.", [])
    third_prompt = transcript.prompt([*after_tool, sent_back(second), user("b")], TOOLS)
    assert third_prompt.parent is None, "a user speaks: the family strips the thoughts of before"
    assert "hm" not in tokenizer.plain(third_prompt.ids).rpartition("</tools>")[2]
    third = say(third_prompt, "", "Good.", [])
    before, after = transcript.samples()
    assert (before.sampled, after.sampled) == (first.sampled + second.sampled, third.sampled)
    assert sum(s.sampled for s in (before, after)) == transcript.sampled


def test_an_answer_sent_back_is_known_by_what_it_means_and_by_nothing_less() -> None:
    tokenizer = chat_tokenizer("qwen3")
    arguments = '{"path": "x", "n": 1}'

    def known(message: Message, tools: list[Tool] = TOOLS) -> bool:
        transcript = Transcript(tokenizer)
        text = written("qwen3", "hm", "I look.", [ToolCall(id="", name="look", arguments=arguments)])
        prompt = transcript.prompt([user("a")], TOOLS)
        transcript.record(prompt, sampled(tokenizer, [*tokenizer.encode(text), tokenizer.stop_ids[0]]))
        return transcript.prompt([user("a"), message, Message("tool", "r", tool_call_id="q")], tools).parent is not None

    def message(
        content: str = "I look.", reasoning: str = "hm", name: str = "look", arguments: str = arguments
    ) -> Message:
        return Message("assistant", content, reasoning, [ToolCall(id="q", name=name, arguments=arguments)])

    assert known(message()) and known(message(reasoning="")), "as it was, and with its thoughts left out"
    assert known(message(arguments='{"n":1,  "path":"\\u0078"}')), "the same JSON value"
    assert not known(message(content="I look")) and not known(message(content="I look. "))
    assert not known(message(reasoning="hmm")) and not known(message(name="run"))
    assert not known(message(arguments='{"path": "x", "n": 1.0}')) and not known(message(arguments='{"path": "x"}'))
    assert not known(message(arguments='{"path": "x", "n": true}')) and not known(Message("assistant", "I look."))
    assert not known(message(), TOOLS[:1]), "other tools stand at the beginning of the prompt"


def test_where_the_model_reads_the_ids_of_calls_they_count() -> None:
    tokenizer = chat_tokenizer("mistral-nemo")
    transcript = Transcript(tokenizer)
    text = written("mistral-nemo", "", "", [ToolCall(id="abc123XYZ", name="look", arguments='{"path": "x"}')])
    prompt = transcript.prompt([user("a")], TOOLS)
    turn = transcript.record(prompt, sampled(tokenizer, [*tokenizer.encode(text), tokenizer.stop_ids[0]]))
    assert turn.calls[0].id == "abc123XYZ", "the model's own"
    result = Message("tool", "r", tool_call_id="abc123XYZ")
    assert transcript.prompt([user("a"), sent_back(turn), result], TOOLS).parent is turn
    other = Message("assistant", "", "", [ToolCall(id="abc123XYy", name="look", arguments='{"path": "x"}')])
    assert transcript.prompt([user("a"), other, Message("tool", "r", tool_call_id="abc123XYy")], TOOLS).parent is None


def test_two_answers_that_differ_in_thoughts_alone_are_not_told_apart_by_guessing() -> None:
    tokenizer = chat_tokenizer("qwen3")
    transcript = Transcript(tokenizer)
    call = ToolCall(id="", name="look", arguments="{}")
    for thought in ("one", "two"):
        prompt = transcript.prompt([user("a")], TOOLS)
        text = written("qwen3", thought, "", [call])
        transcript.record(prompt, sampled(tokenizer, [*tokenizer.encode(text), tokenizer.stop_ids[0]]))
    one, two = transcript.turns
    tool = Message("tool", "r", tool_call_id="q")

    def parent(message: Message) -> Turn | None:
        return transcript.prompt([user("a"), message, tool], TOOLS).parent

    assert parent(sent_back(one)) is one and parent(sent_back(two)) is two
    assert parent(sent_back(one, reasoning=False)) is one, "the calls' ids tell"
    nameless = Message("assistant", "", "", [ToolCall(id="q", name="look", arguments="{}")])
    assert parent(nameless) is None


def test_an_incomplete_turn_and_what_goes_on_from_it_reach_no_sample() -> None:
    tokenizer = chat_tokenizer("qwen2.5")
    transcript = Transcript(tokenizer)
    stop = tokenizer.stop_ids[0]
    first = transcript.record(transcript.prompt([user("a")]), sampled(tokenizer, [40, 41, stop]))
    asked = [user("a"), sent_back(first), user("b")]
    lost = transcript.record(transcript.prompt(asked), sampled(tokenizer, [42, 43]), "the client left")
    after = transcript.prompt([*asked, sent_back(lost), user("c")])
    assert after.parent is lost
    on = transcript.record(after, sampled(tokenizer, [44, stop]))
    assert on.incomplete == "it goes on from an incomplete turn: the client left"
    (sample,) = transcript.samples()
    assert sample.ids == first.ids and sample.sampled == 3
    assert transcript.turns == [first] and transcript.incomplete == [lost, on]
