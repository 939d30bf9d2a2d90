"""Chat messages as the model's tokens, and tokens as text.

In: a Hugging Face model folder (tokenizer.json, a chat template, stop tokens). Out: token ids of a conversation, the
ids that follow an answer, the text of sampled ids. Loads `tokenizers` and `jinja2` alone, never torch. Leaves the
memory of what was sampled to transcript.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from rockroll.errors import UsageError

Message = Mapping[str, Any]
"""What a chat template takes: "role" and "content", and whatever else the template knows."""


class ChatTokenizer:
    """The tokenizer and chat template of one model folder.

    Raises UsageError where the folder lacks a part, or where its template cannot be continued token by token.
    """

    def __init__(self, path: str | Path) -> None:
        folder = Path(path)
        config = _json(folder / "tokenizer_config.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # noqa: BLE001  tokenizers raises bare Exception for everything
            raise UsageError(f"a model folder holds a readable tokenizer.json; {folder} does not: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._names = {
            name: _token_text(config[name])
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if config.get(name)
        }
        self._template = _compile(_template_source(folder, config), folder)
        self.stop_ids: list[int] = self._stop_ids(folder)
        """Ids that end an answer, the template's end of turn first."""
        self._stop_text = self._tokenizer.decode(self.stop_ids[:1], skip_special_tokens=False)
        self._prove(folder)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a whole conversation, ready for the assistant to answer."""
        return self.encode(self.text(messages, add_generation_prompt=add_generation_prompt))

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The chat template's own text. Raises UsageError where the template refuses the messages."""
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, tools=None, **self._names
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(str(m.get("role")) for m in messages)
            raise UsageError(f"the model's chat template refuses the messages ({roles}): {error}") from None

    def after(self, messages: Sequence[Message], new: Sequence[Message], *, stopped: bool) -> list[int]:
        """The ids between an answer to `messages` and the next answer, which also gets to see `new`.

        stopped: the answer's ids end with a stop token; else (it was cut at its length) one is put first here.
        What the answer said does not matter: a stand-in takes its place, and only what follows it is rendered.
        """
        stand_in = self._stand_in([*messages, *new])
        whole = self.text([*messages, {"role": "assistant", "content": stand_in}, *new])
        _, found, rest = whole.partition(stand_in)
        if not found or not rest.startswith(self._stop_text):
            raise UsageError(
                f"a chat template closes an answer with its stop token {self._stop_text!r}; got {rest[:40]!r} after it"
            )
        return self.encode(rest.removeprefix(self._stop_text) if stopped else rest)

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it stands: special tokens written in it are read, none are added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids: a stop token at the end is left out, other special tokens are shown."""
        kept = list(ids)
        if kept and kept[-1] in self.stop_ids:
            kept.pop()
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def _stand_in(self, messages: Sequence[Message]) -> str:
        said = repr(messages)
        number = 0
        while f"answer{number}answer" in said:
            number += 1
        return f"answer{number}answer"

    def _stop_ids(self, folder: Path) -> list[int]:
        """The end of turn that the template writes, then the end-of-sequence ids the model's files name."""
        named = [self._tokenizer.token_to_id(self._names["eos_token"])] if "eos_token" in self._names else []
        for name in ("generation_config.json", "config.json"):
            eos = _json(folder / name, missing_ok=True).get("eos_token_id")
            named += eos if isinstance(eos, list) else [eos]
        known = {i for i in named if i is not None}
        probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer0answer"}]
        closing = self.encode(self.text(probe, add_generation_prompt=False).partition("answer0answer")[2])
        if not closing or closing[0] not in known:
            written = repr(self._tokenizer.decode(closing[:1], skip_special_tokens=False)) if closing else "nothing"
            raise UsageError(
                f"a chat template closes an answer with one of the model's stop tokens {sorted(known)}; the one in "
                f"{folder} writes {written}; name that token in generation_config.json's eos_token_id"
            )
        return [closing[0], *sorted(known - {closing[0]})]

    def _prove(self, folder: Path) -> None:
        """A conversation built turn by turn must have the ids of the same conversation rendered whole."""
        said = ["look here.", "found 3 files", "done"]
        messages: list[Message] = [{"role": "user", "content": "Do it: `ls /tmp`.\n"}]
        ids = self.render(messages)
        for number, answer in enumerate(said):
            new: list[Message] = [{"role": "user", "content": f"output {number}\n  {number}"}]
            ids += [*self.encode(answer), self.stop_ids[0], *self.after(messages, new, stopped=True)]
            messages += [{"role": "assistant", "content": answer}, *new]
        whole = self.render(messages)
        if ids != whole:
            at = next(
                (i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), min(len(ids), len(whole))
            )
            raise UsageError(
                "a chat template must be append-only: a conversation's tokens begin with those of its own past; the "
                f"one in {folder} differs at token {at}: {self.decode(whole[:at][-8:])!r} is followed by "
                f"{self.decode(ids[at : at + 4])!r} turn by turn and {self.decode(whole[at : at + 4])!r} rendered whole"
            )


def _json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise UsageError(f"a model folder holds {path.name}; {path.parent} has none") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} must be readable JSON: {error}") from None


def _token_text(value: Any) -> str:
    return value["content"] if isinstance(value, dict) else str(value)


def _template_source(folder: Path, config: Mapping[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    inline = config.get("chat_template")
    if isinstance(inline, list):
        inline = next((item["template"] for item in inline if item.get("name") == "default"), None)
    if not inline:
        raise UsageError(
            f"training needs the model's chat template; {folder} has no chat_template.jinja and no chat_template in "
            "tokenizer_config.json; put one there"
        )
    return inline


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, which some templates use to mark answers, renders its inside."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str, folder: Path) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise UsageError(f"the chat template in {folder} is not valid Jinja: {error}") from None
