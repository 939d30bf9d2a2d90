"""Supervised warm-up: transcripts of mixed quality, and a fixed number of steps on them.

In: a fresh model and its tokenizer. Out: the same model, which knows the format, the commands and what each goal
asks for, but prefers one bad habit in most kinds of goal; that is what reinforcement then has to find out. Leaves
building the model to model.py and measuring it to evaluate.py.

Quality is mixed by habit and not by noise: under random noise greedy decoding already solves nearly everything.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from rockroll.data.shell import conversation
from rockroll.env.shell import Goal, ShellTask
from rockroll.env.shell_ways import HABITS, SOLUTIONS

STEPS = 230
"""A number, and no seconds: learning comes in a phase transition, which seconds would cut at another place on every
machine."""
BATCH = 64
"""Transcripts a step."""
MATRIX_LR, OTHER_LR = 0.02, 0.01
"""Muon for the layers' matrices, AdamW for embeddings and norms: AdamW alone does not get there in a minute."""
RAMP_STEPS = 20
DEAL = 8
"""Batches drawn together and sorted by length: less padding."""
IGNORED = -100
"""cross_entropy's label of a token that is not trained."""

WRONG: dict[str, tuple[float, ...]] = {
    "create": (0.15, 0.15, 0.15),
    "append": (0.8, 0.1, 0.8),
    "copy": (0.8, 0.8, 0.8),
    "follow": (0.75, 0.75, 0.75),
    "extract": (0.75, 0.75, 0.75),
}
"""How often a goal is done in its kind's wrong way, by the phrase that says it. The right way is always there to be
sampled. No rate is near one half, where greedy decoding would be a matter of luck."""


def demonstrations(seed: int) -> Iterator[list[dict[str, str]]]:
    """Conversations without end, of training situations only, each right or in its kind's bad habit."""
    task, rng = ShellTask(), random.Random(f"rockroll.tiny {seed}")
    while True:
        situation = task.situation(rng.getrandbits(62), "train")
        goal: Goal = situation.secret
        ways = HABITS if rng.random() < WRONG[goal.kind][goal.phrase] else SOLUTIONS
        yield conversation(situation, ways[goal.kind](goal))


def encode(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """(ids, labels) of a conversation: the assistant's words and its end of turn are trained."""
    ids: list[int] = []
    labels: list[int] = []
    for message in messages:
        opening = tokenizer.encode(f"<|{message['role']}|>", add_special_tokens=False).ids
        rest = tokenizer.encode(f"{message['content']}<|end|>", add_special_tokens=False).ids
        ids += opening + rest
        labels += [IGNORED] * len(opening) + (rest if message["role"] == "assistant" else [IGNORED] * len(rest))
    return ids, labels


def warm_up(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    steps: int = STEPS,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train `model` in place; `report` is told each step and its loss."""
    matrices = [p for name, p in model.model.layers.named_parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    optimizers = [
        (torch.optim.Muon(matrices, lr=MATRIX_LR, weight_decay=0.1), MATRIX_LR),
        (torch.optim.AdamW(others, lr=OTHER_LR, betas=(0.9, 0.95), weight_decay=0.0), OTHER_LR),
    ]
    batches = _batches(tokenizer, seed)
    model.train()
    for step in range(steps):
        share = min((step + 1) / RAMP_STEPS, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for optimizer, lr in optimizers:
            optimizer.param_groups[0]["lr"] = lr * share
            optimizer.zero_grad(set_to_none=True)
        ids, labels = next(batches)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        keep = labels[:, 1:] != IGNORED
        loss = cross_entropy(model.lm_head(hidden[:, :-1][keep]), labels[:, 1:][keep])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        report(step, loss.item())
    model.eval()


def _batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, labels) [BATCH, T] without end."""
    source, rng = demonstrations(seed), random.Random(f"rockroll.tiny batches {seed}")
    while True:
        samples = [encode(tokenizer, next(source)) for _ in range(BATCH * DEAL)]
        samples.sort(key=lambda sample: len(sample[0]))
        batches = [samples[i : i + BATCH] for i in range(0, len(samples), BATCH)]
        rng.shuffle(batches)
        yield from map(_batch, batches)


def _batch(samples: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded on the right: a causal model's real tokens never see what comes after them."""
    longest = max(len(ids) for ids, _ in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    labels = torch.full((len(samples), longest), IGNORED)
    for row, (row_ids, row_labels) in enumerate(samples):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        labels[row, : len(row_labels)] = torch.tensor(row_labels)
    return ids, labels
