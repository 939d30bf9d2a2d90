"""The tiny model's tokenizer: whole words for what its tasks say, letters for names, bytes for everything else.

In: the word lists of `rockroll:shell` and the rules of FrozenLake. Out: tokenizer.json, tokenizer_config.json and
chat_template.jinja in a model folder, as `transformers` and rollout/tokenizer.py load them. Leaves ids to `tokenizers`.

Every text survives encoding and decoding unchanged. A word of the lexicon is one token together with the space before
it; a command's first word also without one. What is in no list is spelled: a space, then letter by letter, so that
the letters of a name are the same tokens wherever the name stands; what has no token as a character is bytes.
"""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from rockroll.env.frozen_lake import MOVES, RULES
from rockroll.env.shell import SHELL_WORDS, may_be_name
from rockroll.env.shell_words import PHRASE_WORDS, WORDS

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Append-only: a message never changes what was written before it."""

_OUTPUT_WORDS = ("ok", "error", "cannot", "stat", "remove", "No", "such", "directory", "are", "same", "not", "found")
"""What the agent program and the core utilities say about a command."""


def build() -> Tokenizer:
    """The tokenizer, always the same: a special token's, a character's and a word's id depend on the lists alone."""
    special = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    characters = ["\n", "\t", *(chr(code) for code in range(32, 127))]
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    rules = re.findall(r"[A-Za-z]+", RULES)
    lexicon = {*WORDS, *PHRASE_WORDS, *rules, *MOVES, *_OUTPUT_WORDS, ">", ">>", *string.digits, "-l", "-n"}
    lexicon = {word for word in lexicon if not may_be_name(word)}
    first = {*SHELL_WORDS, *(w for w in PHRASE_WORDS if w[0].isupper()), *MOVES, *_OUTPUT_WORDS[:2], "You", ">>"}
    words = sorted(first - set(characters)) + sorted(f" {word}" for word in lexicon | set(SHELL_WORDS))

    vocab: dict[str, int] = {}
    for token in [*special, *characters, *spelled, *words]:
        vocab.setdefault(token, len(vocab))
    # Without merges, `ignore_merges` is what makes a listed word one token; all else falls to characters, then bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?[<>]+| -[a-z]| [0-9]|."), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def save(folder: Path, *, context_length: int) -> Tokenizer:
    """Write the tokenizer's three files into `folder`, which exists; return the tokenizer."""
    tokenizer = build()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        "add_bos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer
