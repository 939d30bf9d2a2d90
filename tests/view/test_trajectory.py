"""An episode is read from its tokens alone: as a conversation, and token by token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.view import trajectory
from rockroll.view.runs import Run
from rockroll.view.text import shortened, visible
from rockroll.view.vocabulary import Vocabulary
from tests.view import made


@pytest.fixture(scope="module")
def words(made_runs: Path) -> Vocabulary:
    return Vocabulary(Run(made_runs / "shell-a", "shell-a"))


@pytest.fixture(scope="module")
def tokenizer(made_model: Path) -> ChatTokenizer:
    return ChatTokenizer(made_model)


def record(tokenizer: ChatTokenizer, *said: str, **fields: Any) -> dict[str, Any]:
    import msgspec

    found = made.episode(tokenizer, "e", 0, 0, list(said), 1.0)
    return msgspec.json.decode(msgspec.json.encode(found)) | fields


def blocks(record: dict[str, Any], words: Vocabulary, **options: bool) -> list[tuple[str, str, str]]:
    (branch,) = trajectory.branches(record)
    return [(b.kind, b.title, b.text) for b in trajectory.conversation(branch, words, record, **options)]


def test_a_shell_episode_reads_as_commands_and_their_outputs(tokenizer: ChatTokenizer, words: Vocabulary) -> None:
    found = blocks(record(tokenizer, "Copy the file a to b.", "cp a b", "ok", "done"), words, commands=True)
    assert found == [
        ("message", "user", "Copy the file a to b."),
        ("answer", "command 1", "cp a b"),
        ("output", "output", "ok"),
        ("answer", "command 2", "done"),
    ]


def test_a_reasoning_and_a_tool_call_stand_apart() -> None:
    class Fake(Vocabulary):
        def __init__(self) -> None:
            from rockroll.rollout.answer import Style

            self.missing, self.marks, self._pieces = "", {}, {}
            self._tokenizer = self  # type: ignore[assignment]
            self.style, self.thinking = Style(calls="hermes", reasoning=True), False

        def decode(self, ids: list[int]) -> str:
            return '<think>\nhm\n</think>\n\n<tool_call>\n{"name": "bash", "arguments": {"cmd": "ls"}}\n</tool_call>'

        def plain(self, ids: list[int]) -> str:
            return "user\n<tool_response>\nfile\n</tool_response>"

    record = {"samples": [{"ids": [1, 2], "mask": [False, True]}]}
    (branch,) = trajectory.branches(record)
    given, answer = trajectory.conversation(branch, Fake(), record)
    assert (given.kind, given.text) == ("output", "file")
    assert (answer.reasoning, answer.text, answer.calls) == ("hm", "", [("bash", "ls")])


@pytest.mark.parametrize(
    ("ids", "marks", "text", "expected"),
    [
        ([9, 1, 8], {9: "<|im_start|>", 8: "<|im_end|>"}, {(1,): "system\nbe good"}, [("system", "be good")]),
        (
            [9, 1, 7, 2, 8],
            {9: "<|start_header_id|>", 7: "<|end_header_id|>", 8: "<|eot_id|>"},
            {(1,): "user", (2,): "\n\nhello"},
            [("user", "hello")],
        ),
        ([9, 1, 8], {9: "[INST]", 8: "[/INST]"}, {(1,): "hello"}, [("user", "hello")]),
        ([9, 1], {9: "<start_of_turn>"}, {(1,): "model\nyes"}, [("model", "yes")]),
        ([1], {}, {(1,): "no template"}, [("context", "no template")]),
    ],
    ids=["chatml", "llama 3", "mistral", "gemma", "none"],
)
def test_messages_are_told_apart_by_the_template_s_marks(
    ids: list[int], marks: dict[int, str], text: dict[tuple[int, ...], str], expected: list[tuple[str, str]]
) -> None:
    class Fake:
        def __init__(self) -> None:
            self.marks = marks

        def text(self, ids: list[int]) -> str:
            return text[tuple(ids)]

    (branch,) = trajectory.branches({"samples": [{"ids": ids}]})
    found = trajectory.conversation(branch, Fake(), {})  # type: ignore[arg-type]
    assert [(block.title, block.text) for block in found] == expected


def test_a_token_says_mask_log_prob_advantage_and_version(words: Vocabulary) -> None:
    sample = {
        "ids": [3, 369, 537, 1],
        "mask": [False, True, True, False],
        "logprobs": [0.0, -0.005, -3.0, 0.0],
        "versions": [-1, 4, 5, -1],
        "turns": [{"number": 0, "start": 1, "end": 4}],
    }
    (branch,) = trajectory.branches({"samples": [sample], "advantages": [[[1, 2, 0.0], [2, 3, -1.5]]]})
    found = re.findall(r'<span class="([^"]+)" title="([^"]+)"', trajectory.tokens(branch, words))
    assert found == [
        ("c", "token 0, id 3"),
        ("s l0 v0 z", "token 1, id 369, log-prob -0.005, advantage +0, weight version 4"),
        ("s l5 v1 n3", "token 2, id 537, log-prob -3, advantage -1.5, weight version 5"),
        ("o", "token 3, id 1"),
    ]


def test_a_window_of_tokens_is_that_part_alone(tokenizer: ChatTokenizer, words: Vocabulary) -> None:
    (branch,) = trajectory.branches(record(tokenizer, "a", "b", "c", "d"))
    whole = trajectory.tokens(branch, words)
    assert trajectory.tokens(branch, words, 0, 3) + trajectory.tokens(branch, words, 3) == whole


def test_without_a_tokenizer_there_are_numbers_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\nmodel: /nowhere\n")
    words = Vocabulary(Run(tmp_path, "x"))
    assert "/nowhere" in words.missing
    assert blocks({"samples": [{"ids": [5, 6], "mask": [False, True]}]}, words) == [
        ("message", "context", "5"),
        ("answer", "answer 1", "6"),
    ]


@pytest.mark.parametrize("record", [{}, {"samples": []}, {"samples": [{}]}, {"samples": None}])
def test_a_record_may_lack_anything(record: dict[str, Any]) -> None:
    assert trajectory.branches(record) == []


def test_what_cannot_be_seen_is_shown_and_what_is_long_is_cut() -> None:
    assert visible("a\x1b[31m\x00\u202eb\u200bc\r\nd\te") == "a\\x1b[31m\\x00\\u202eb\\u200bc\nd\te"
    cut = shortened("x" * 50_000, 1000)
    assert len(cut) < 1100 and "49,000 characters are left out here" in cut
