"""ChatTokenizer: the model's own chat template, as token ids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rockroll.errors import UsageError
from rockroll.rollout import continuation
from rockroll.rollout.continuation import Past
from rockroll.rollout.tokenizer import ChatTokenizer

from .conftest import TEMPLATE, write_model_folder

TALK = [
    {"role": "system", "content": "You use a shell."},
    {"role": "user", "content": "list the files\n"},
    {"role": "assistant", "content": "ls -la"},
    {"role": "user", "content": "total 0 — é\n"},
]


def test_renders_what_transformers_renders(model_folder: Path, tokenizer: ChatTokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(model_folder)
    for prompt in (True, False):
        expected = theirs.apply_chat_template(TALK, tokenize=True, add_generation_prompt=prompt, return_dict=False)
        assert tokenizer.render(TALK, add_generation_prompt=prompt) == expected


def test_needs_no_torch(model_folder: Path) -> None:
    code = (
        "import sys; from rockroll.rollout.tokenizer import ChatTokenizer; "
        f"ChatTokenizer({str(model_folder)!r}); print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_decode_leaves_out_the_stop_token_and_shows_other_special_tokens(tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode("done <|im_start|> now<|im_end|>")
    assert ids[-1] == tokenizer.stop_ids[0]
    assert tokenizer.decode(ids) == "done <|im_start|> now"


def test_after_is_what_a_whole_render_adds(tokenizer: ChatTokenizer) -> None:
    history, answer, new = TALK[:2], TALK[2], TALK[3:]
    said = tokenizer.encode(answer["content"])
    follows = tokenizer.continuation.after(Past.of(history, tools=False), ("", answer["content"], ()), new)
    assert follows is not None and follows.stop_id == tokenizer.stop_ids[0]
    ids = tokenizer.render(history) + said + [follows.stop_id] + tokenizer.encode(follows.text)
    assert ids == tokenizer.render([*history, answer, *new])


def test_what_is_remembered_is_what_another_tokenizer_says(
    model_folder: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of texts and continuations that come again, after other pasts and answers too; also where few are kept."""
    monkeypatch.setattr(continuation, "KEPT", 3)
    pasts = [Past(system, False) for system in (True, False)]
    news = [[{"role": role, "content": f"say {n}"}] for role in ("user", "tool") for n in range(3)]
    asked = [(past, ("", text, ()), new) for past in pasts for text in ("yes", "") for new in news] * 2
    for past, answer, new in asked:
        assert tokenizer.continuation.after(past, answer, new) == ChatTokenizer(model_folder).continuation.after(
            past, answer, new
        )
    first = tokenizer.encode("say it")
    first.append(0)  # a caller's own list
    assert tokenizer.encode("say it") == ChatTokenizer(model_folder).encode("say it")


def test_a_stop_token_of_generation_config_counts_too(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    tokenizer = ChatTokenizer(folder)
    assert tokenizer.stop_ids == [2, 0]


def test_a_template_that_rewrites_the_past_is_refused(tmp_path: Path) -> None:
    counting = "<|im_start|>system\n{{ messages | length }} messages<|im_end|>\n" + TEMPLATE
    with pytest.raises(UsageError, match=r"append-only.*differs at token"):
        ChatTokenizer(write_model_folder(tmp_path / "m", counting))


@pytest.mark.parametrize(
    "odd",
    [
        "{{ '[' ~ loop.index ~ ']' }}",
        "{% if loop.index > 5 %}{{ 'long' }}{% endif %}",
        "{% if not loop.first %}{{ messages[0]['content'] }}{% endif %}",
    ],
)
def test_a_template_whose_later_messages_depend_on_earlier_ones_is_refused(tmp_path: Path, odd: str) -> None:
    """Its text only ever grows; but what follows an answer is not what follows one in a short conversation."""
    counting = TEMPLATE.replace("<|im_start|>{{ message['role'] }}\n", odd + "<|im_start|>{{ message['role'] }}\n")
    assert counting != TEMPLATE
    with pytest.raises(UsageError, match=r"append-only.*differs at token"):
        ChatTokenizer(write_model_folder(tmp_path / "m", counting))


def test_a_template_that_closes_with_another_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one of the model's stop tokens \[0\].*<\|im_end\|>.*generation_config"):
        ChatTokenizer(write_model_folder(tmp_path / "m", eos="<|endoftext|>"))


def test_a_template_that_refuses_a_role_says_so(tmp_path: Path) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    tokenizer = ChatTokenizer(write_model_folder(tmp_path / "m", strict))
    with pytest.raises(UsageError, match=r"\(system, user\): no system role"):
        tokenizer.render(TALK[:2])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_missing_part_is_named(tmp_path: Path, name: str) -> None:
    folder = write_model_folder(tmp_path / "m")
    (folder / name).unlink()
    with pytest.raises(UsageError, match=name):
        ChatTokenizer(folder)
