"""Model families of the tests: their real chat templates, and tokenizers with their special tokens."""

from __future__ import annotations

import atexit
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from rockroll.model_service.wire import ToolCall
from rockroll.rollout.tokenizer import ChatTokenizer

TEMPLATES = Path(__file__).parent / "templates"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "look at the file and say done, then run the command ls and show its output\n\n",
    'hello world {"name": "look", "arguments": {"path": "here", "depth": 2}}\n' * 3,
    "the model thinks about the answer and the answer is short\nyes\nno\n",
]


@dataclass(frozen=True)
class Family:
    specials: tuple[str, ...]
    stops: tuple[str, ...]
    bos: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    system: bool = True
    alternating: bool = False
    """Users and the model take turns; nobody speaks twice."""
    calls_at_once: int = 2


_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN = ("<tool_call>", "</tool_call>", "<think>", "</think>")
_LLAMA = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
)
_MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]")
_MISTRAL = (*_MISTRAL, "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")

FAMILIES = {
    "qwen2.5": Family((*_CHATML, *_QWEN[:2]), ("<|im_end|>", "<|endoftext|>")),
    "qwen3": Family((*_CHATML, *_QWEN), ("<|im_end|>", "<|endoftext|>")),
    "qwen3-coder": Family((*_CHATML, *_QWEN[:2]), ("<|im_end|>", "<|endoftext|>")),
    "qwen3.5": Family((*_CHATML, *_QWEN), ("<|im_end|>", "<|endoftext|>"), options={"enable_thinking": False}),
    "qwq": Family((*_CHATML, *_QWEN), ("<|im_end|>", "<|endoftext|>"), options={"enable_thinking": True}),
    "llama-3.1": Family((*_LLAMA, "<|python_tag|>"), ("<|eot_id|>", "<|eom_id|>"), _LLAMA[0], calls_at_once=1),
    "llama-3.2": Family((*_LLAMA, "<|python_tag|>"), ("<|eot_id|>", "<|eom_id|>"), _LLAMA[0], calls_at_once=1),
    "mistral-nemo": Family(_MISTRAL, ("</s>",), "<s>", alternating=True),
    "mistral-small-3.2": Family(_MISTRAL, ("</s>",), "<s>", alternating=True),
    "gemma-2": Family(
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), ("<end_of_turn>", "<eos>"), "<bos>", {}, False, True
    ),
}


@cache
def chat_tokenizer(name: str) -> ChatTokenizer:
    return ChatTokenizer(model_folder(name), options=FAMILIES[name].options)


@cache
def model_folder(name: str) -> Path:
    """A model folder without weights, for one test run."""
    family, folder = FAMILIES[name], Path(mkdtemp(prefix=f"rockroll-{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(family.specials),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": family.stops[0], **({"bos_token": family.bos} if family.bos else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ids = [tokenizer.token_to_id(token) for token in family.stops]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    (folder / "chat_template.jinja").write_text((TEMPLATES / f"{name}.jinja").read_text())
    return folder


def xml(call: ToolCall) -> str:
    """A call as the XML families' templates write it."""
    values = json.loads(call.arguments).items()
    inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values)
    return f"<tool_call>\n<function={call.name}>\n{inside}</function>\n</tool_call>"


def written(name: str, reasoning: str, content: str, calls: Sequence[ToolCall]) -> str:
    """An answer as a model of the family writes it."""
    style = chat_tokenizer(name).style
    text = f"<think>\n{reasoning}\n</think>\n\n{content}" if reasoning else content
    if name == "qwq":
        text = text.removeprefix("<think>\n")
    if style.calls == "xml":
        blocks = [xml(call) for call in calls]
        return "\n\n".join([text, *blocks[:1]] if content else [text + "".join(blocks[:1])]) + "".join(
            f"\n{each}" for each in blocks[1:]
        )
    objects = [f'"name": "{call.name}", "arguments": {call.arguments}' for call in calls]
    if style.calls == "hermes":
        blocks = [f"<tool_call>\n{{{each}}}\n</tool_call>" for each in objects]
        return "\n".join([text, *blocks] if content else [text + "".join(blocks[:1]), *blocks[1:]])
    if calls and style.calls == "llama":
        return f'{{"name": "{calls[0].name}", "parameters": {calls[0].arguments}}}'
    if calls and style.named:
        return text + "".join(f"[TOOL_CALLS]{c.name}[CALL_ID]{c.id}[ARGS]{c.arguments}" for c in calls)
    if calls:
        blocks = [f'{{{each}, "id": "{call.id}"}}' for each, call in zip(objects, calls, strict=True)]
        return f"{text}[TOOL_CALLS][{', '.join(blocks)}]"
    return text
