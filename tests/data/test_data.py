"""Data sets: what is learnt of an example, in which order examples come, and what is said of a faulty one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rockroll.data.config import DataConfig
from rockroll.data.encode import encode
from rockroll.data.examples import find
from rockroll.data.forms import Conversation, conversations
from rockroll.data.source import DataPosition, DataSet, Deck
from rockroll.env.shell_quiz import ShellQuiz
from rockroll.errors import UsageError
from rockroll.rollout.tokenizer import ChatTokenizer
from tests.rollout.conftest import write_model_folder
from tests.rollout.families import TEMPLATES


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer(write_model_folder(tmp_path_factory.mktemp("model")))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def lines(path: Path, *examples: object) -> Path:
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return path


def learnt(tokenizer: ChatTokenizer, ids: list[int], mask: list[bool]) -> str:
    return tokenizer.plain([i for i, m in zip(ids, mask, strict=True) if m])


# ------------------------------------------------------------------------------------------------- tokens and mask


def test_the_mask_covers_what_the_assistant_says_and_its_end_of_turn(tokenizer: ChatTokenizer) -> None:
    messages = [user("look at the file"), said("ls"), user("file"), said("done")]
    (sample,) = encode(tokenizer, Conversation(messages), "x")
    assert learnt(tokenizer, sample.ids, sample.mask) == "ls<|im_end|>done<|im_end|>"
    assert tokenizer.plain(sample.ids) == tokenizer.text(messages, add_generation_prompt=False).rstrip("\n")


def test_only_the_completion_is_learnt_where_there_is_a_prompt(tokenizer: ChatTokenizer) -> None:
    example = {"prompt": [user("a"), said("first"), user("b")], "completion": "second"}
    (conversation,) = conversations(example, "sft", "x")
    (sample,) = encode(tokenizer, conversation, "x")
    assert learnt(tokenizer, sample.ids, sample.mask) == "second<|im_end|>"


def test_two_answers_share_the_messages_they_begin_with(tokenizer: ChatTokenizer) -> None:
    whole = {"chosen": [user("a"), said("yes")], "rejected": [user("a"), said("no")]}
    apart = {"prompt": "a", "chosen": "yes", "rejected": "no"}
    for example in (whole, apart):
        found = [encode(tokenizer, c, "x")[0] for c in conversations(example, "dpo", "x")]
        assert [learnt(tokenizer, s.ids, s.mask) for s in found] == ["yes<|im_end|>", "no<|im_end|>"]


def test_a_template_that_drops_earlier_thoughts_makes_samples_that_learn_each_answer_once(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(write_model_folder(tmp_path / "qwen3", (TEMPLATES / "qwen3.jinja").read_text()))
    thought = {"role": "assistant", "content": "one", "reasoning_content": "hmm"}
    samples = encode(tokenizer, Conversation([user("a"), thought, user("b"), said("two")]), "x")
    told = [learnt(tokenizer, s.ids, s.mask) for s in samples]
    assert len(samples) == 2 and "hmm" in told[0] and "one" in told[0] and "two" in told[1] and "one" not in told[1]
    assert "hmm" not in tokenizer.plain(samples[1].ids)


# ------------------------------------------------------------------------------------------------- order


def numbered(tmp_path: Path, count: int, **fields: object) -> DataSet:
    path = lines(tmp_path / "d.jsonl", *({"prompt": "look", "completion": "ls " * (n + 1)} for n in range(count)))
    return DataSet(DataConfig(path=str(path), **fields), "sft", seed=4)  # pyright: ignore[reportArgumentType]


def test_each_pass_has_every_example_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    data = numbered(tmp_path, 20, held_out_examples=0)
    first, second = ([data.number(p) for p in range(start, start + 20)] for start in (0, 20))
    assert sorted(first) == sorted(second) == list(range(20)) and first != second
    assert [numbered(tmp_path, 20, held_out_examples=0).number(p) for p in range(20)] == first


def test_held_out_examples_are_never_trained(tmp_path: Path) -> None:
    data = numbered(tmp_path, 20)
    assert len(data.held_out) == 4 and len(data) == 16  # a fifth at most
    assert {data.number(p) for p in range(16)} == set(range(20)) - set(data.held_out)


def test_dealing_goes_on_where_it_stood(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    data = numbered(tmp_path, 10, batch=4, held_out_examples=0)
    straight = Deck(data, tokenizer, context=512)
    batches = [straight.deal(step).batch for step in range(1, 6)]
    before = Deck(data, tokenizer, context=512)
    for step in (1, 2, 3):
        before.deal(step)
    after = Deck(data, tokenizer, context=512)
    after.go_on(before.position)
    assert [after.deal(step).batch for step in (4, 5)] == batches[3:]
    with pytest.raises(UsageError, match="has 10 examples to train and had 11"):
        after.go_on(DataPosition(4, 11))


def test_an_example_that_is_too_long_is_skipped_and_counted(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    whole = numbered(tmp_path, 10, held_out_examples=0)
    lengths = sorted(len(whole.samples(tokenizer, n)[0][0].ids) for n in range(10))
    limit = lengths[5]
    fitting = sum(length <= limit for length in lengths)
    data = numbered(tmp_path, 10, batch=4, held_out_examples=0, max_tokens=limit)
    deck = Deck(data, tokenizer, context=512)
    dealt = [deck.deal(step) for step in range(5)]
    assert all(d.examples == 4 and max(len(s.ids) for s in d.batch.samples) <= limit for d in dealt)
    taken = deck.position.taken
    assert sum(d.skipped for d in dealt) == taken - 20 and taken / 10 == pytest.approx(20 / fitting, abs=1)
    with pytest.raises(UsageError, match=r"every example of .* is longer than 5 tokens"):
        Deck(data, tokenizer, context=5).deal(1)


def test_epochs_end_the_run_before_its_steps(tmp_path: Path) -> None:
    data = numbered(tmp_path, 10, batch=4, held_out_examples=0, epochs=2)
    assert (data.steps(100), data.steps(3)) == (5, 3)


def test_pairs_follow_each_other_with_the_chosen_one_first(tokenizer: ChatTokenizer) -> None:
    config = DataConfig(path="rockroll:shell_preferences", options={"size": 20}, batch=3)
    batch = Deck(DataSet(config, "dpo", seed=1), tokenizer, context=512).deal(1).batch
    assert [(s.group, s.episode, s.reward) for s in batch.samples] == [(n // 2, n, float(n % 2 == 0)) for n in range(6)]


# ------------------------------------------------------------------------------------------------- places and faults


def test_a_folder_is_read_in_the_order_of_its_files_without_empty_lines(tmp_path: Path) -> None:
    lines(tmp_path / "b.jsonl", {"n": 2})
    (tmp_path / "a.jsonl").write_text('{"n": 0}\n\n{"n": 1}\n')
    found = find(str(tmp_path))
    assert [dict(found[n])["n"] for n in range(len(found))] == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "objective", "says"),
    [
        ('{"messages": [}', "sft", r"d.jsonl:2: not JSON"),
        ("[1]", "sft", r"d.jsonl:2: an example is a JSON object; got list"),
        ('{"text": "a"}', "sft", r"d.jsonl:2: an example for sft has messages, or prompt and completion; got text"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "sft", "no message of role assistant"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "sft", "begins with a message of role user"),
        ('{"prompt": "a", "completion": [{"content": "b"}]}', "sft", "a message has a role and a content"),
        ('{"prompt": "a", "completion": "b"}', "dpo", "an example for dpo has prompt, chosen and rejected"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "dpo", "chosen and rejected are the same"),
        ('{"prompt": "a", "completion": "b<|im_end|>c"}', "sft", r"d.jsonl:2: a generation ends at its first stop"),
    ],
)
def test_a_faulty_example_is_named_by_file_and_line(
    tmp_path: Path, tokenizer: ChatTokenizer, text: str, objective: str, says: str
) -> None:
    (tmp_path / "d.jsonl").write_text(f"\n{text}\n")
    data = DataSet(DataConfig(path=str(tmp_path / "d.jsonl")), objective, seed=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=says):
        Deck(data, tokenizer, context=512).deal(1)


def test_a_place_without_a_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    for place, says in (
        (str(tmp_path / "no.jsonl"), "cannot be read"),
        (str(tmp_path / "empty.jsonl"), "at least one example"),
        (str(tmp_path / "none" / ".."), "cannot be read"),
        ("rockroll:nothing", "own data sets are rockroll:demonstrations, rockroll:shell_demonstrations"),
        ("json:nothing", "could not be made: AttributeError"),
        ("collections:abc", "could not be made"),
    ):
        with pytest.raises(UsageError, match=says):
            find(place)
    with pytest.raises(UsageError, match="could not be made: ValueError: a data set has at least one example"):
        find("rockroll:shell_demonstrations", {"size": 0})


# ------------------------------------------------------------------------------------------------- one-turn env


def test_a_quiz_rewards_the_command_that_reaches_the_goal_and_runs_nothing() -> None:
    from rockroll.env.shell_ways import HABITS, SOLUTIONS

    quiz = ShellQuiz()
    for seed in range(20):
        goal, _ = quiz.reset(seed)
        assert quiz.reset(seed)[0] == goal
        assert quiz._situation is not None
        right, wrong = (ways[quiz._situation.secret.kind](quiz._situation.secret)[0] for ways in (SOLUTIONS, HABITS))
        assert quiz.step(right)[1:4] == (1.0, True, False)
        assert quiz.step(wrong)[1] == 0.0
        assert quiz.step("touch /tmp/never; rm -rf /")[1] == 0.0
    with pytest.raises(ValueError, match="kinds are some of create, append, copy; got follow"):
        ShellQuiz(kinds=["follow"])
