"""The tiny model's tokenizer: lossless, and short where the tasks are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rockroll.env.shell import Goal, ShellTask
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.tiny import tokenizer as tiny
from rockroll.tiny.warmup import HABITS, SOLUTIONS, conversation, encode

TOKENIZER = tiny.build()


def tokens(text: str) -> list[str]:
    return TOKENIZER.encode(text, add_special_tokens=False).tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny.save(path, context_length=512)
    return path


@given(st.text(max_size=60))
@settings(max_examples=300)
def test_every_text_comes_back_as_it_was(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_words_are_whole_and_names_are_letters() -> None:
    assert tokens("echo amber > abc") == ["echo", " amber", " >", " ", "a", "b", "c"]
    assert tokens("ok: amber") == ["ok", ":", " amber"]
    assert tokens("zyzzyva") == list("zyzzyva")


def test_situations_and_their_commands_are_short() -> None:
    for seed in range(300):
        situation = ShellTask().situation(seed, "train")
        goal: Goal = situation.secret
        names = {goal.file, goal.other}
        for text in (situation.instruction, *SOLUTIONS[goal.kind](goal), *HABITS[goal.kind](goal)):
            spelled = [t for t in tokens(text) if len(t) == 1 and t.isalpha()]
            assert len(spelled) == sum(3 * text.count(name) for name in names), text
        assert all(len(tokens(command)) <= 11 for command in SOLUTIONS[goal.kind](goal))
        prompt = encode(TOKENIZER, conversation(situation, SOLUTIONS[goal.kind](goal)))[0]
        assert len(prompt) <= 80


def test_ids_do_not_depend_on_the_process() -> None:
    assert tiny.build().to_str() == TOKENIZER.to_str()


def test_all_who_load_it_agree(folder: Path) -> None:
    ours, theirs = ChatTokenizer(folder), AutoTokenizer.from_pretrained(folder)
    situation = ShellTask().situation(1, "train")
    messages = conversation(situation, SOLUTIONS[situation.secret.kind](situation.secret))
    expected = encode(TOKENIZER, messages)[0]
    assert ours.render(messages, add_generation_prompt=False) == expected
    assert theirs.apply_chat_template(messages, return_dict=False) == expected
    assert theirs.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False) == ours.render(
        messages[:1]
    )
    assert theirs.eos_token == tiny.END and ours.stop_ids == [theirs.eos_token_id]
    assert theirs.decode(expected) == ours.decode(expected[:-1]) + tiny.END
