"""Chat messages as the model's tokens, and tokens as text.

In: a Hugging Face model folder (tokenizer.json, a chat template, stop tokens). Out: token ids of a conversation, the
text of sampled ids. Loads `tokenizers` and `jinja2` alone, never torch. Leaves what follows an answer to
continuation.py, and the memory of what was sampled to transcript.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from rockroll.errors import UsageError
from rockroll.rollout import answer
from rockroll.rollout.answer import Style
from rockroll.rollout.continuation import KEPT, SHORT, TOOL, Continuation, Message

__all__ = ["ChatTokenizer", "Message"]


class ChatTokenizer:
    """The tokenizer and chat template of one model folder.

    calls, reasoning: how the family writes them; auto: as its template shows. options: further variables of the
    template, such as {"enable_thinking": False}.
    Raises UsageError where the folder lacks a part, or where its template cannot be continued token by token.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        calls: Literal["auto", "hermes", "xml", "llama", "mistral", "none"] = "auto",
        reasoning: Literal["auto", "think", "none"] = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        folder = Path(path)
        config = _json(folder / "tokenizer_config.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # noqa: BLE001  tokenizers raises bare Exception for everything
            raise UsageError(f"a model folder holds a readable tokenizer.json; {folder} does not: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._short = lru_cache(KEPT)(self._encode)
        self._names = {
            name: _token_text(config[name])
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if config.get(name)
        }
        source = _template_source(folder, config)
        self._template = _compile(source, folder)
        self._options = dict(options or {})
        shown = answer.detect(source)
        self.style = Style(
            calls=shown.calls if calls == "auto" else calls,
            reasoning=shown.reasoning if reasoning == "auto" else reasoning == "think",
            named=shown.named,
        )
        """How answers are taken apart."""
        self.stop_ids: list[int] = self._stop_ids(folder)
        """Ids that end an answer, the template's end of turn first."""
        self.stop_texts = {self._tokenizer.decode([i], skip_special_tokens=False): i for i in self.stop_ids}
        self.thinking = self.style.reasoning and self._opens_reasoning()
        """A prompt ends within the reasoning: an answer begins there."""
        self.takes_tools = self._shows_tools()
        """The template has a place for tool definitions."""
        self.shows_call_ids = self._shows_ids()
        """The model reads the ids of calls: an answer with other ids is another answer."""
        self._bytes = _byte_values(self._tokenizer)
        self._ids: dict[int, int] = {}
        self.continuation = Continuation(self)
        if differs := self.continuation.prove():
            raise UsageError(
                "a chat template must be append-only: a conversation's tokens begin with those of its own past; the "
                f"one in {folder} differs at token {differs}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def marks(self) -> dict[int, str]:
        """Special tokens by id: what a template sets between messages, and no message is made of."""
        return {id: token.content for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = True
    ) -> list[int]:
        """The ids of a whole conversation, ready for the assistant to answer."""
        return self.encode(self.text(messages, tools=tools, add_generation_prompt=add_generation_prompt))

    def text(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = True
    ) -> str:
        """The chat template's own text. Raises UsageError where the template refuses the messages."""
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                tools=list(tools) if tools else None,
                **self._names,
                **self._options,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            roles = ", ".join(str(m.get("role")) for m in messages)
            raise UsageError(f"the model's chat template refuses the messages ({roles}): {error}") from None

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it stands: special tokens written in it are read, none are added."""
        return list(self._short(text)) if len(text) <= SHORT else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def shared(self, ids: Sequence[int]) -> list[int]:
        """The same ids, of which each number is one object however often it stands in whichever list: a list of them
        takes 8 bytes an id."""
        return list(map(self._ids.setdefault, ids, ids))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids: a stop token at the end is left out, other special tokens are shown."""
        kept = list(ids)
        if kept and kept[-1] in self.stop_ids:
            kept.pop()
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def plain(self, ids: Sequence[int]) -> str:
        """The text of any ids, every special token shown."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for; several tokens may share a character."""
        piece = self._tokenizer.id_to_token(id) or ""
        if self._bytes is None or id in self._tokenizer.get_added_tokens_decoder():
            if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
                return bytes([int(piece[3:5], 16)])
            return piece.replace("▁", " ").encode()
        return bytes(self._bytes[c] for c in piece if c in self._bytes)

    def _opens_reasoning(self) -> bool:
        end = self.text([{"role": "user", "content": "question"}]).rpartition("question")[2]
        return end.rfind(answer.OPEN) > end.rfind(answer.CLOSE)

    def _shows_tools(self) -> bool:
        try:
            return "stand_in" in self.text([{"role": "user", "content": "question"}], tools=[TOOL])
        except UsageError:
            return False

    def _shows_ids(self) -> bool:
        call = {"id": "abcdefghi", "type": "function", "function": {"name": "stand_in", "arguments": {}}}
        try:
            return "abcdefghi" in self.text(
                [{"role": "user", "content": "question"}, {"role": "assistant", "content": "", "tool_calls": [call]}],
                add_generation_prompt=False,
            )
        except UsageError:
            return False

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


def _byte_values(tokenizer: Tokenizer) -> dict[str, int] | None:
    """Which byte each letter of a byte-level vocabulary is; None for a vocabulary of plain text."""
    if '"ByteLevel"' not in tokenizer.decoder.__getstate__().decode() if tokenizer.decoder else True:
        return None
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


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
    began = datetime.now()  # one date for a run: at midnight no conversation's past changes
    environment.globals["strftime_now"] = began.strftime
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise UsageError(f"the chat template in {folder} is not valid Jinja: {error}") from None
