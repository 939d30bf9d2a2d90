"""The tiny model: made from nothing but this repository, always the same, in about a minute.

In: an empty folder. Out: a Hugging Face model folder of 0.9 M parameters that does a fifth to a third of
`rockroll:shell` right; TrainError where it came out otherwise. Leaves teaching to warmup.py, measuring to evaluate.py.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from rockroll.errors import TrainError
from rockroll.tiny import tokenizer as tokenizers
from rockroll.tiny.evaluate import PassRate, evaluate
from rockroll.tiny.warmup import STEPS, warm_up

CONTEXT_LENGTH = 512
LEAST, MOST = 0.15, 0.40
"""Between these pass rates a training curve means something: the model knows the work and does most of it wrong."""
LEAST_OF_A_KIND = 0.05
"""At temperature 1, of every kind of goal: what is never sampled right can never be found to be right."""
CHECKED = 256
"""Held-out situations it is measured on."""


def fresh(vocab_size: int, pad: int | None, end: int | None, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of 4 layers, 128 wide, embeddings tied, with random weights.

    The weights are drawn four times as wide as usual (0.09) and each block starts as the identity: at this size the
    words, which are met seldom, are learnt several times faster.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            initializer_range=0.09,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            torch.nn.init.zeros_(parameter)
    return model


def make(folder: Path, *, steps: int = STEPS, say: Callable[[str], None] = print) -> tuple[PassRate, PassRate]:
    """Make the model and put it at `folder`, replaced as a whole; its pass rates, greedy and at temperature 1.

    Raises TrainError, and writes nothing, where either is not within LEAST and MOST.
    """
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in one order on every machine; two threads are no faster at this size
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=_made(folder.parent)))
    try:
        tokenizer = tokenizers.save(aside, context_length=CONTEXT_LENGTH)
        pad, end = tokenizer.token_to_id(tokenizers.PAD), tokenizer.token_to_id(tokenizers.END)
        model = fresh(tokenizer.get_vocab_size(), pad, end)

        def report(step: int, loss: float) -> None:
            if (step + 1) % 40 == 0:
                say(f"  step {step + 1}/{steps}, loss {loss:.2f}")

        warm_up(model, tokenizer, steps=steps, report=report)
        greedy, sampled = (evaluate(model, tokenizer, range(CHECKED), temperature=t) for t in (0.0, 1.0))
        for name, rate in (("greedy", greedy), ("at temperature 1", sampled)):
            say(f"  held-out pass rate {name}: {rate}")
            if not LEAST <= rate.overall <= MOST:
                raise TrainError(
                    f"the tiny model's held-out pass rate {name} is {rate.overall:.3f}; between {LEAST} and {MOST} is "
                    f"what training can start from. Was rockroll/tiny or rockroll/env/shell.py changed? Tune "
                    f"warmup.STEPS or warmup.WRONG"
                )
        for kind, n in sampled.tried.items():
            if sampled.solved[kind] < LEAST_OF_A_KIND * n:
                raise TrainError(
                    f"the tiny model does {sampled.solved[kind]} of {n} goals of the kind {kind} right at "
                    f"temperature 1; below {LEAST_OF_A_KIND:.0%} training finds nothing to reinforce. Tune "
                    f"warmup.STEPS or warmup.WRONG"
                )
        model.save_pretrained(aside)
        GenerationConfig(eos_token_id=end, pad_token_id=pad).save_pretrained(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return greedy, sampled


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
