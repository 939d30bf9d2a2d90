"""Supervised training: next-token cross-entropy on the masked tokens of samples. A plain loop without DeepSpeed.

In: a `transformers` causal model, samples with ids and mask, a fixed number of steps. Out: the model trained in
place, and the loss of each step. The same samples, settings and thread count give the same weights. Leaves what the
samples say, and saving the model, to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rockroll.errors import TrainError
from rockroll.train.batch import Masked, Row, collate, make_row, pack
from rockroll.train.loss import token_logprobs
from rockroll.train.policy import Policy, parameter_groups


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    steps: int
    """Optimizer updates: a number, never a time, so that every machine makes the same model."""
    samples_per_step: int = 64
    lr: float = 2e-3
    """Peak learning rate: reached after `warmup_steps`, then a cosine down to a tenth of it."""
    warmup_steps: int = 20
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    tokens_per_microbatch: int = 8192
    seed: int = 0
    """Orders the samples: each pass over them is a new permutation."""

    def learning_rate(self, step: int) -> float:
        """Of update `step`, from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def train_supervised(
    model: Any,
    samples: Sequence[Masked],
    config: SupervisedConfig,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `model` in place; returns the mean cross-entropy per trained token (nats) of each step.

    on_step(step, loss) is called after each update. Raises TrainError where no sample has a trained token.
    """
    rows: list[Row] = []
    for sample in samples:
        row = make_row(sample, vocabulary=model.config.vocab_size, context=model.config.max_position_embeddings)
        if row is not None:
            rows.append(row)
    if not rows:
        raise TrainError(f"supervised training needs a masked token; none of {len(samples)} samples has one")
    policy = Policy(model).train()
    optimizer = torch.optim.AdamW(parameter_groups(policy, config.weight_decay), betas=config.betas)
    order = _endless_order(len(rows), config.seed)
    losses: list[float] = []
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate(step)
        chosen = [rows[next(order)] for _ in range(min(config.samples_per_step, len(rows)))]
        lengths = [len(row) for row in chosen]
        total = sum(len(row.targets) for row in chosen)
        loss = 0.0
        for indices in pack(lengths, range(len(chosen)), config.tokens_per_microbatch):
            micro = collate([chosen[i] for i in indices])
            part = -token_logprobs(policy(micro.inputs, micro.index), micro.targets)[0].sum() / total
            part.backward()
            loss += float(part.detach())
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        if on_step is not None:
            on_step(step, loss)
    policy.unwrap()
    return losses


def _endless_order(count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
