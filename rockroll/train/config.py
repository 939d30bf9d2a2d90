"""How the trainer learns, and how its processes are made.

In: the recipe's `train` section, or JSON for the server. Out: a checked TrainConfig. Leaves reading the model's own
files (is it there, what is its context) to the trainer, which alone knows the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    lr: float = 1e-6
    """Learning rate of AdamW, after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on matrices only."""
    warmup_steps: int = 0
    """Optimizer updates over which the learning rate climbs linearly to `lr`."""
    grad_clip: float = 1.0
    """Largest global gradient norm. 0: none."""

    advantage: Literal["grpo"] = "grpo"
    """How rewards become advantages: each episode against the others of its group."""
    std_normalisation: bool = True
    """Divide a group's advantages by the standard deviation of its rewards."""
    clip_low: float = 0.2
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.28
    """The probability ratio is clipped above at 1 + clip_high."""
    aggregation: Literal["token_mean"] = "token_mean"
    """How token losses become one number: the mean over every trained token of all ranks and micro-batches."""
    importance_cap: float = 2.0
    """Truncated importance sampling: a token's loss is weighed by min(p_trainer / p_engine, this cap). 0: off."""
    kl: float = 0.0
    """Weight of the k3 estimate of KL(policy, start model) in the loss. 0: none, and no second model in memory."""
    entropy: float = 0.0
    """Weight of the entropy bonus in the loss. 0: entropy is only measured."""
    epochs: int = 1
    """Passes over each batch."""
    minibatches: int = 1
    """Optimizer updates per pass."""
    tokens_per_microbatch: int = 8192
    """Tokens of one forward, padding included: bounds memory, not the result. One longer sequence goes alone."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed shards over ranks: 0 nothing, 1 optimizer, 2 and gradients, 3 and weights."""
    ranks: int = 1
    """Trainer processes, one per device."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights in the forward; log-probs and the optimizer are float32 in any case. bfloat16: zero_stage 1 up."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is cuda where there is one."""
    threads: int = 0
    """CPU threads of one rank. 0: the cores this process may use, shared among the ranks."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward: less memory, a third more time."""
    seed: int = 0
    """Orders the minibatches."""

    model: str = ""
    """A Hugging Face folder: config.json, model.safetensors and a tokenizer."""
    address: str = ""
    """Where rank R listens, `{rank}` standing for R: ipc://PATH/trainer-{rank}. The controller fills it in."""
    rendezvous: str = ""
    """Where ranks meet: file://PATH (one machine; not yet there) or tcp://HOST:PORT. The controller fills it in."""
    version: int = 0
    """The version of the weights found at start."""

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "warmup_steps", "grad_clip", "kl", "entropy", "importance_cap", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"train {name} must be at least 0; got {getattr(self, name)}")
        for name in ("epochs", "minibatches", "tokens_per_microbatch", "ranks"):
            if getattr(self, name) < 1:
                raise ValueError(f"train {name} must be at least 1; got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train betas must be in [0, 1); got {list(self.betas)}")
        if not 0 < self.clip_low <= 1:
            raise ValueError(f"train clip_low must be in (0, 1], the ratio cannot be negative; got {self.clip_low}")
        if self.clip_high <= 0:
            raise ValueError(f"train clip_high must be over 0; got {self.clip_high}")
        if 0 < self.importance_cap < 1:
            raise ValueError(
                f"train importance_cap must be 1 or more, so that matching tokens count whole (0: off); "
                f"got {self.importance_cap}"
            )
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError(
                "train dtype bfloat16 needs zero_stage 1 or more: DeepSpeed's stage 0 keeps no float32 weights to "
                "add small updates to; got zero_stage 0"
            )
        if self.address and self.ranks > 1 and "{rank}" not in self.address:
            raise ValueError(f"train address needs {{rank}} in it for {self.ranks} ranks; got {self.address!r}")

    def rank_address(self, rank: int) -> str:
        """The rpc address of one rank."""
        return self.address.replace("{rank}", str(rank))
