"""The critic of PPO: how it learns, and the trainer's configuration that makes one.

In: the recipe's `train.critic` beside the policy's own `train`. Out: a TrainConfig for a second instance of the
trainer, whose model ends in one number a token and whose objective is the value loss. Leaves the loss to
objectives/value.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rockroll.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """What differs from the policy's trainer. Whatever stands in neither is the same: ranks, dtype, device, threads."""

    model: str = ""
    """A Hugging Face folder to start from, such as an earlier critic's checkpoint. Left out: the policy's start model,
    with a new head that says 0."""
    lr: float = 1e-5
    """Learning rate of its own AdamW."""
    warmup_steps: int = 0
    """Optimizer updates over which that climbs."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on matrices only."""
    grad_clip: float = 1.0
    """Largest global gradient norm. 0: none."""
    clip: float = 0.2
    """A value may move this far from that at the step's start before its loss has no more use of it. 0: no bound."""
    head_start: int = 0
    """Steps of the run in which the critic learns alone and the policy stays what it is."""
    epochs: int | None = None
    """Passes over each batch. Left out: the policy's."""
    minibatches: int | None = None
    """Optimizer updates per pass. Left out: the policy's."""
    tokens_per_microbatch: int | None = None
    """Tokens of one forward, padding included. Left out: the policy's."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """What DeepSpeed shards over ranks. Left out: the policy's."""

    def __post_init__(self) -> None:
        for name in ("lr", "warmup_steps", "weight_decay", "grad_clip", "clip", "head_start"):
            if getattr(self, name) < 0:
                raise ValueError(f"train critic {name} must be at least 0; got {getattr(self, name)}")
        for name in ("epochs", "minibatches", "tokens_per_microbatch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train critic {name} must be at least 1; got {value}")


def critic_config(policy: TrainConfig, steps: int) -> TrainConfig:
    """The trainer's configuration of the critic beside this policy; its addresses are yet to be filled in.

    steps: of the run, for the schedule of the learning rate.
    """
    critic = policy.critic
    assert critic is not None
    epochs, minibatches = critic.epochs or policy.epochs, critic.minibatches or policy.minibatches
    return replace(
        policy,
        objective="value",
        lora=None,  # its head is new, and all of it learns
        model=critic.model or policy.model,
        lr=critic.lr,
        warmup_steps=critic.warmup_steps,
        weight_decay=critic.weight_decay,
        grad_clip=critic.grad_clip,
        epochs=epochs,
        minibatches=minibatches,
        tokens_per_microbatch=critic.tokens_per_microbatch or policy.tokens_per_microbatch,
        zero_stage=policy.zero_stage if critic.zero_stage is None else critic.zero_stage,
        schedule_updates=steps * epochs * minibatches,
    )
