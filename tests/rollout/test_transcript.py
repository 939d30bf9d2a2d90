"""Transcript: trained tokens are the tokens the engine sampled, each once, in the context it saw."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rockroll.engine.api import Generation
from rockroll.errors import EngineError
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.rollout.transcript import Prompt, Transcript

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda t: "<|" not in t)
ORDINARY = 3
"""Ids below are special in the test tokenizer: end of text, im_start, im_end."""


def said(ids: list[int], version: int = 0) -> Generation:
    stopped = bool(ids) and ids[-1] < ORDINARY
    return Generation(
        token_ids=ids,
        logprobs=[-0.5 - i for i in range(len(ids))],
        versions=[version] * len(ids),
        finish_reason="stop" if stopped else "length",
    )


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@quick
@given(first=words, turns=st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_an_unedited_history_is_sent_as_a_whole_render_would_be(
    tokenizer: ChatTokenizer, first: str, turns: list[tuple[str, str]]
) -> None:
    transcript = Transcript(tokenizer)
    messages = [{"role": "system", "content": "s"}, user(first)]
    for reply, new in turns:
        prompt = transcript.prompt(messages)
        assert prompt.ids == tokenizer.render(messages)
        turn = transcript.record(prompt, said([*tokenizer.encode(reply), tokenizer.stop_ids[0]]))
        assert turn.text == reply
        messages = [*messages, answer(turn.text), user(new)]
    assert transcript.prompt(messages).ids == tokenizer.render(messages)
    assert len(transcript.samples()) == 1


@quick
@given(data=st.data())
def test_whatever_agents_do_the_samples_are_what_the_engine_saw_and_said(tokenizer: ChatTokenizer, data: Any) -> None:
    """Answers of arbitrary ids, cut or stopped; calls that go on from any earlier turn, edit it, or begin afresh."""
    transcript = Transcript(tokenizer)
    token = st.integers(ORDINARY, tokenizer.vocab_size - 1)
    sent: list[tuple[Prompt, Generation]] = []
    for version in range(data.draw(st.integers(1, 6))):
        how = data.draw(st.sampled_from(["go on", "edit", "fresh"])) if transcript.turns else "fresh"
        if how == "fresh":
            messages = [user(data.draw(words))]
        else:
            history = list(data.draw(st.sampled_from(transcript.turns)).history)
            if how == "edit":
                at = data.draw(st.integers(0, len(history) - 1))
                history[at] = {**history[at], "content": history[at]["content"] + "!"}
            messages = [*history, *map(user, data.draw(st.lists(words, min_size=1, max_size=2)))]
        prompt = transcript.prompt(messages)
        if prompt.parent is None:
            assert prompt.ids == tokenizer.render(messages)
        else:
            assert prompt.ids[: len(prompt.parent.ids)] == prompt.parent.ids
            assert messages[: len(prompt.parent.history)] == prompt.parent.history
        ids = data.draw(st.lists(token, min_size=1, max_size=5))
        if data.draw(st.booleans()):
            ids = [*ids, tokenizer.stop_ids[0]]
        generation = said(ids, version)
        transcript.record(prompt, generation)
        sent.append((prompt, generation))

    samples = transcript.samples()
    assert sum(sample.sampled for sample in samples) == transcript.sampled == sum(len(g.token_ids) for _, g in sent)
    seen = {tuple(prompt.ids + generation.token_ids) for prompt, generation in sent}
    for sample in samples:
        assert tuple(sample.ids) in seen
        assert len(sample.ids) == len(sample.mask) == len(sample.logprobs) == len(sample.versions)
        for masked, logprob, version in zip(sample.mask, sample.logprobs, sample.versions, strict=True):
            assert (version >= 0) == masked and (logprob < 0) == masked
    for version, (prompt, generation) in enumerate(sent):
        homes = [s for s in samples if version in s.versions]
        assert len(homes) == 1, "every sampled token is trained in exactly one branch"
        start, length = len(prompt.ids), len(generation.token_ids)
        assert homes[0].ids[: start + length] == prompt.ids + generation.token_ids
        assert [i for i, v in enumerate(homes[0].versions) if v == version] == list(range(start, start + length))
        assert homes[0].logprobs[start : start + length] == generation.logprobs


@quick
@given(text=words, new=words)
def test_an_answer_cut_at_its_length_is_closed_with_an_untrained_stop_token(
    tokenizer: ChatTokenizer, text: str, new: str
) -> None:
    ids = tokenizer.encode(text)
    assume(ids)
    transcript = Transcript(tokenizer)
    first = transcript.prompt([user("a")])
    turn = transcript.record(first, said(ids))
    second = transcript.prompt([user("a"), answer(turn.text), user(new)])
    assert second.ids == tokenizer.render([user("a"), answer(text), user(new)])
    transcript.record(second, said([tokenizer.stop_ids[0]]))
    (sample,) = transcript.samples()
    closing = len(first.ids) + len(ids)
    assert sample.ids[closing] == tokenizer.stop_ids[0] and not sample.mask[closing]


def test_sampled_ids_are_kept_where_their_text_would_be_tokenized_differently(tokenizer: ChatTokenizer) -> None:
    spelt = [i for letter in "look" for i in tokenizer.encode(letter)]
    assert tokenizer.encode("look") != spelt
    transcript = Transcript(tokenizer)
    turn = transcript.record(transcript.prompt([user("a")]), said([*spelt, tokenizer.stop_ids[0]]))
    assert turn.text == "look"
    second = transcript.prompt([user("a"), answer("look"), user("b")])
    assert second.ids[: len(turn.ids)] == turn.ids


def test_two_continuations_of_one_turn_train_it_once(tokenizer: ChatTokenizer) -> None:
    transcript = Transcript(tokenizer)
    root = transcript.record(transcript.prompt([user("a")]), said([10, 11, tokenizer.stop_ids[0]]))
    for text in ("b", "c"):
        prompt = transcript.prompt([user("a"), answer(root.text), user(text)])
        assert prompt.parent is root
        transcript.record(prompt, said([12, tokenizer.stop_ids[0]]))
    first, second = transcript.samples()
    assert (first.sampled, second.sampled) == (5, 2)


def test_calls_under_way_at_once_do_not_disturb_each_other(tokenizer: ChatTokenizer) -> None:
    transcript = Transcript(tokenizer)
    one, two = transcript.prompt([user("a")]), transcript.prompt([user("b")])
    transcript.record(two, said([20]))
    transcript.record(one, said([21]))
    assert [sample.ids[-1] for sample in transcript.samples()] == [20, 21]


@pytest.mark.parametrize(
    ("generation", "rule"),
    [
        (said([]), "0 tokens"),
        (Generation(token_ids=[5, 6], logprobs=[-1.0], versions=[0, 0], finish_reason="length"), "1 log-probs"),
        (Generation(token_ids=[5], logprobs=[-1.0], versions=[0], finish_reason="abort"), "gave it up after 1"),
        (said([2, 5]), "ends at its first stop token"),
    ],
)
def test_a_generation_that_is_not_whole_is_refused(tokenizer: ChatTokenizer, generation: Generation, rule: str) -> None:
    transcript = Transcript(tokenizer)
    with pytest.raises(EngineError, match=rule):
        transcript.record(transcript.prompt([user("a")]), generation)
    assert transcript.samples() == []


def test_branches_name_the_turns_they_share_alike_and_equal_questions_alike(tokenizer: ChatTokenizer) -> None:
    transcript = Transcript(tokenizer)
    stop = tokenizer.stop_ids[0]
    first = transcript.record(transcript.prompt([user("go")]), said([20, stop]))
    for ids in ([21, stop], [22, stop]):
        transcript.record(transcript.prompt([*first.history, user("on")]), said(ids))
    transcript.record(transcript.prompt([user("go")]), said([23, stop]))
    one, two, fresh = transcript.samples()
    assert [t.number for t in one.turns] == [0, 1] and [t.number for t in two.turns] == [0, 2]
    assert [one.ids[t.start : t.end] for t in one.turns] == [[20, stop], [21, stop]]
    assert one.turns[1].state == two.turns[1].state != one.turns[0].state == fresh.turns[0].state
    covered = {i for t in one.turns for i in range(t.start, t.end)}
    assert covered == {i for i, m in enumerate(one.mask) if m}
