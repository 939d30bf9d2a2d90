"""How the trainer learns, and how its processes are made.

In: the recipe's `train` section, or JSON for the server. Out: a checked TrainConfig. Leaves reading the model's own
files (is it there, what is its context) to the trainer, which alone knows the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rockroll.train.algorithm import (
    PRESETS,
    Advantage,
    Aggregation,
    Algorithm,
    Correction,
    ObjectiveName,
    Ratio,
    RatioLevel,
    Surrogate,
)
from rockroll.train.critic import CriticConfig
from rockroll.train.lora_config import LoraConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    objective: ObjectiveName = "policy"
    """What a step minimises (train/algorithm.py): the policy loss by reward, or that of sft, dpo, distill."""
    dpo_beta: float = 0.1
    """dpo: how strongly the policy is held to the start model."""
    teacher: str = ""
    """distill: a Hugging Face folder with the same tokenizer, or `tiny`."""
    divergence: Literal["reverse", "forward"] = "reverse"
    """distill: KL(student, teacher) or KL(teacher, student), over the vocabulary, at every sampled token."""
    lr: float = 1e-6
    """Learning rate of AdamW, after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on matrices only."""
    warmup_steps: int = 0
    """Optimizer updates over which the learning rate climbs linearly to `lr`."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on from there, down to `lr_floor` at update `schedule_updates`."""
    lr_floor: float = 0.0
    """Where a schedule ends, as a share of `lr`."""
    schedule_updates: int = 0
    """Updates of the whole run. 0: the controller fills in steps × epochs × minibatches."""
    grad_clip: float = 1.0
    """Largest global gradient norm. 0: none."""

    algorithm: Algorithm = "dapo"
    """A name for the choices below (train/algorithm.py has the table); each that is left out is the algorithm's."""
    advantage: Advantage | None = None
    """How rewards become advantages."""
    std_normalisation: bool | None = None
    """Divide a group's advantages by the standard deviation of its rewards."""
    domain_normalisation: bool = False
    """Several tasks: each task's advantages are made equally large, and `batch` compares within the task alone."""
    gamma: float = 1.0
    """Discount from turn to turn, for turn_returns and gigpo; from sampled token to sampled token for gae."""
    gae_lambda: float = 0.95
    """gae: how far it trusts rewards (1) or the critic's values (0) (arXiv 1506.02438)."""
    critic: CriticConfig | None = None
    """gae: how the critic learns. Left out there: by CriticConfig's own values."""
    step_weight: float = 1.0
    """gigpo: how much a turn's own advantage counts beside its episode's."""
    ratio: Ratio | None = None
    """What the policy's ratio is taken against: the trainer at the step's start, with a correction for what the engine
    was (decoupled), or the engine itself, without one (direct)."""
    ratio_level: RatioLevel | None = None
    """What the ratio is taken of: a token, or its whole sequence."""
    surrogate: Surrogate | None = None
    """What the ratio does: clip, weigh, or nothing."""
    clip_low: float | None = None
    """The probability ratio is bounded below at 1 - clip_low."""
    clip_high: float | None = None
    """The probability ratio is bounded above at 1 + clip_high."""
    clip_low_negative: float | None = None
    """clip_low where the advantage is negative; left out: the same."""
    clip_high_negative: float | None = None
    """clip_high where the advantage is negative; left out: the same."""
    dual_clip: float = 0.0
    """A token of negative advantage loses at most this many times its advantage. 0: no such bound."""
    correction: Correction | None = None
    """For the difference between the trainer's policy and the engine's that sampled. Left out: truncate, or off where
    ratio is direct."""
    correction_level: RatioLevel = "token"
    """What that ratio is taken of."""
    correction_low: float = 0.5
    """mask and reject: what is below is dropped."""
    correction_high: float = 2.0
    """truncate: the largest weight. mask and reject: what is above is dropped."""
    aggregation: Aggregation | None = None
    """How token losses become one number."""
    aggregation_length: int = 0
    """Tokens that constant_length divides by, such as the longest answer allowed."""
    kl: float = 0.0
    """Weight of KL(policy, start model). 0: none, and no second model in memory."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How it is estimated from sampled tokens."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether it is added to each token's loss, or taken from the episode's reward before advantages."""
    kl_target: float = 0.0
    """Nats per token that `kl` is adapted to reach. 0: `kl` stays as it is."""
    entropy: float = 0.0
    """Weight of the entropy bonus in the loss. 0: entropy is only measured."""
    epochs: int = 1
    """Passes over each batch."""
    minibatches: int = 1
    """Optimizer updates per pass."""
    tokens_per_microbatch: int = 8192
    """Tokens of one forward, padding included: bounds memory, not the result. One longer sequence goes alone."""

    lora: LoraConfig | None = None
    """Train an adapter beside frozen weights, as in {rank: 16, alpha: 32}. Left out: all weights are trained."""
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
    worst_case_step: bool = True
    """Before step 1, a step of the longest batch that the recipe permits, which changes nothing: memory fails then,
    with the setting to lower, or never."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward: less memory, a third more time."""
    seed: int = 0
    """Orders the minibatches."""

    model: str = ""
    """A Hugging Face folder: config.json, model.safetensors and a tokenizer."""
    address: str = ""
    """Where rank R listens, `{rank}` standing for R: ipc://PATH/trainer-{rank}; or one address a rank, with commas
    between. The controller fills it in."""
    key: str = ""
    """The file of the key of tcp addresses. The controller fills it in."""
    apart: bool = False
    """Ranks do not share their disks: each writes its part of a checkpoint into a folder of its own. The controller
    fills it in."""
    rendezvous: str = ""
    """Where ranks meet: file://PATH (one machine; not yet there) or tcp://HOST:PORT. The controller fills it in."""
    version: int = 0
    """The version of the weights found at start."""
    deterministic: bool = False
    """Equal batches make equal weights, to the last bit, on one machine with one number of threads."""

    def __post_init__(self) -> None:
        for name, value in PRESETS[self.algorithm].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.correction is None:
            object.__setattr__(self, "correction", "off" if self.ratio == "direct" else "truncate")
        for name in (
            *("lr", "weight_decay", "warmup_steps", "grad_clip", "kl", "kl_target", "entropy", "threads"),
            *("step_weight", "correction_low", "aggregation_length", "schedule_updates"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"train {name} must be at least 0; got {getattr(self, name)}")
        for name in ("epochs", "minibatches", "tokens_per_microbatch", "ranks"):
            if getattr(self, name) < 1:
                raise ValueError(f"train {name} must be at least 1; got {getattr(self, name)}")
        if not 0 <= self.lr_floor <= 1:
            raise ValueError(f"train lr_floor is a share of lr, in [0, 1]; got {self.lr_floor}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train betas must be in [0, 1); got {list(self.betas)}")
        if self.advantage == "gae" and self.critic is None:
            object.__setattr__(self, "critic", CriticConfig())
        self._check_objective()
        self._check_algorithm()
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            raise ValueError(
                "train dtype bfloat16 needs zero_stage 1 or more: DeepSpeed's stage 0 keeps no float32 weights to "
                "add small updates to; got zero_stage 0"
            )
        if self.address and "{rank}" not in self.address and len(self.address.split(",")) != self.ranks:
            raise ValueError(f"train address needs {{rank}} in it for {self.ranks} ranks; got {self.address!r}")

    def _check_objective(self) -> None:
        if self.objective != "policy":
            for name in ("kl", "entropy"):
                if getattr(self, name):
                    raise ValueError(
                        f"train {name} is a part of objective policy; leave it out for {self.objective}; "
                        f"got {getattr(self, name)}"
                    )
        if self.dpo_beta <= 0:
            raise ValueError(f"train dpo_beta must be over 0 (0.1 is usual); got {self.dpo_beta}")
        if self.objective == "distill" and not self.teacher:
            raise ValueError("train objective distill needs teacher: a Hugging Face folder with the same tokenizer")
        if self.objective != "distill" and self.teacher:
            raise ValueError(f"train teacher is for objective distill; got it with objective {self.objective}")

    def _check_algorithm(self) -> None:
        free = self.surrogate == "weight"
        for name in ("clip_low", "clip_low_negative"):
            value = getattr(self, name)
            if value is not None and not (0 <= value <= 1 if free else 0 < value <= 1):
                raise ValueError(f"train {name} must be in (0, 1], the ratio cannot be negative; got {value}")
        for name in ("clip_high", "clip_high_negative"):
            value = getattr(self, name)
            if value is not None and (value < 0 or (value == 0 and not free)):
                raise ValueError(f"train {name} must be over 0; got {value}")
        if 0 < self.dual_clip <= 1 or self.dual_clip < 0:
            raise ValueError(f"train dual_clip must be over 1 (3 is usual), or 0 for none; got {self.dual_clip}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"train {name} must be in [0, 1]; got {getattr(self, name)}")
        if self.critic is not None and self.advantage != "gae":
            raise ValueError(
                f"train critic is of use to advantage: gae alone, as in algorithm: ppo; got {self.advantage}"
            )
        if self.advantage == "gae" and self.kl and self.kl_in == "reward":
            raise ValueError(
                "train kl_in: reward is not for advantage gae, whose critic would not know of it; use loss"
            )
        if self.correction_high < 1:
            raise ValueError(
                f"train correction_high must be 1 or more, so that matching tokens count whole; "
                f"got {self.correction_high}"
            )
        if self.correction_low > 1:
            raise ValueError(
                f"train correction_low must be at most 1, so that matching tokens are kept; got {self.correction_low}"
            )
        if self.ratio == "direct" and self.correction != "off":
            raise ValueError(
                f"train ratio: direct already compares with the engine, so that correction must be off; "
                f"got {self.correction}"
            )
        if self.surrogate == "clip" and self.ratio_level != "token" and self.aggregation != "sequence_mean_of_means":
            raise ValueError(
                f"train ratio_level {self.ratio_level} with surrogate clip gives every token of a row the row's own "
                f"loss, so that aggregation must be sequence_mean_of_means; got {self.aggregation}"
            )
        if self.aggregation == "constant_length" and not self.aggregation_length:
            raise ValueError(
                "train aggregation constant_length needs aggregation_length, such as the longest answer allowed; got 0"
            )
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "train kl_estimator k1 has a gradient of zero mean in the loss; use k2 or k3, or kl_in: reward"
            )
        if self.kl_target and not self.kl:
            raise ValueError(
                f"train kl_target adapts kl, which must start over 0; got kl 0, kl_target {self.kl_target}"
            )

    def learning_rate(self, updates: int) -> float:
        """Of the next update, after so many. Linear warm-up, then the schedule (cosine: arXiv 1608.03983)."""
        if updates < self.warmup_steps:
            return self.lr * (updates + 1) / self.warmup_steps
        if self.schedule == "constant" or self.schedule_updates <= self.warmup_steps:
            return self.lr
        done = min(1.0, (updates - self.warmup_steps) / (self.schedule_updates - self.warmup_steps))
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.lr * (self.lr_floor + (1 - self.lr_floor) * left)

    @property
    def has_critic(self) -> bool:
        """Whether a second trainer learns the values that this one needs."""
        return self.objective == "policy" and self.advantage == "gae"

    @property
    def has_reference(self) -> bool:
        """Whether a frozen copy of the start model is held; beside an adapter, the model without it is as good."""
        return self.lora is None and (self.objective == "dpo" or bool(self.kl))

    @property
    def needs_old(self) -> bool:
        """Whether the trainer's log-probs at the step's start must be known before the loss."""
        several = self.epochs * self.minibatches > 1 and self.ratio == "decoupled"
        return several or self.correction in ("mask", "reject") or (self.kl > 0 and self.kl_in == "reward")

    def rank_address(self, rank: int) -> str:
        """The rpc address of one rank."""
        each = self.address.split(",")
        return each[rank] if len(each) > 1 else self.address.replace("{rank}", str(rank))
