"""Which arithmetic an algorithm's name stands for: one table, one row an algorithm.

In: a name. Out: the value of every choice that the name makes; whatever the recipe sets itself overrules it. Pure,
no torch. Leaves what each choice computes to advantages.py and loss.py.

    rewards ─► advantage ─► ratio level ─► surrogate (bounds) ─► correction ─► aggregation ─► one number
"""

from __future__ import annotations

from typing import Any, Literal

ObjectiveName = Literal["policy", "sft", "dpo", "distill", "value"]
"""What is minimised.

    policy   the loss that the rest of this file names, on sampled episodes and their rewards
    sft      the negative log-likelihood of written answers
    dpo      of two written answers, that the chosen one is preferred (arXiv 2305.18290)
    distill  the distance from a teacher, on sampled tokens (arXiv 2306.13649)
    value    a critic's error (critic.py makes it; no recipe names it)
"""

DATA_OBJECTIVES: tuple[ObjectiveName, ...] = ("sft", "dpo")
"""Those that learn from a data set; the others learn from what they sample."""

Algorithm = Literal[
    "dapo",
    "grpo",
    "dr_grpo",
    "rloo",
    "reinforce",
    "reinforce_pp",
    "gspo",
    "cispo",
    "topr",
    "gigpo",
    "turn_returns",
    "ppo",
]

Advantage = Literal["group", "leave_one_out", "batch", "reward", "turn_returns", "gigpo", "gae"]
"""How rewards become advantages.

    group           reward - mean of its group (over its std with std_normalisation)
    leave_one_out   reward - mean of the others of its group
    batch           reward - mean of the whole batch, over the batch's std
    reward          the reward itself
    turn_returns    discounted return of each turn, against the group's turns
    gigpo           group, plus each turn against the turns of its group that began in the same state
    gae             generalised advantage estimates of each token with a critic's values, whitened over the batch
"""

Ratio = Literal["decoupled", "direct"]
"""What the policy's ratio is taken against: the trainer at the step's start, with a correction for what the engine was
(decoupled), or the engine that sampled, without one (direct)."""

RatioLevel = Literal["token", "sequence", "geometric"]
"""What a probability ratio is taken of: one token, the product over the sequence, or that product's geometric mean."""

Surrogate = Literal["clip", "weight", "plain"]
"""clip: min(r·A, bounded r·A). weight: bounded r, without gradient, times A·log p. plain: A·log p."""

Correction = Literal["off", "truncate", "mask", "reject"]
"""For p_trainer / p_engine of what was sampled: weigh up to a cap, drop tokens out of bounds, drop sequences."""

Aggregation = Literal["token_mean", "sequence_mean_of_sums", "sequence_mean_of_means", "constant_length"]
"""How token losses become one number; a sequence is an episode, with all its branches.

    token_mean              the mean over all trained tokens
    sequence_mean_of_sums   the mean over episodes of their sums
    sequence_mean_of_means  the mean over episodes of their means
    constant_length         the mean over episodes of their sums / aggregation_length
"""

_COMMON: dict[str, Any] = {
    "advantage": "group",
    "std_normalisation": True,
    "ratio": "decoupled",
    "ratio_level": "token",
    "surrogate": "clip",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "clip_low_negative": None,
    "clip_high_negative": None,
    "aggregation": "token_mean",
}
PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2503.14476: clip-higher, token mean, no KL
    "dapo": _COMMON | {"clip_high": 0.28},
    # arXiv 2402.03300
    "grpo": _COMMON | {"aggregation": "sequence_mean_of_means"},
    # arXiv 2503.20783: neither the std nor the answer's own length divides
    "dr_grpo": _COMMON | {"std_normalisation": False, "aggregation": "constant_length"},
    # arXiv 2402.14740
    "rloo": _COMMON | {"advantage": "leave_one_out", "surrogate": "plain", "aggregation": "sequence_mean_of_sums"},
    # Williams 1992
    "reinforce": _COMMON | {"advantage": "reward", "surrogate": "plain", "aggregation": "sequence_mean_of_sums"},
    # arXiv 2501.03262
    "reinforce_pp": _COMMON | {"advantage": "batch"},
    # arXiv 2507.18071
    "gspo": _COMMON
    | {
        "ratio_level": "geometric",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "aggregation": "sequence_mean_of_means",
    },
    # arXiv 2506.13585; the ratio is bounded above alone (the bound itself is not in the paper)
    "cispo": _COMMON | {"surrogate": "weight", "clip_low": 1.0, "clip_high": 4.0},
    # arXiv 2503.14286: good answers count whole, bad ones by min(ratio, 1). The ratio is to the policy that sampled: to
    # the trainer at the step's start it would be 1 in the only update that most recipes make of a batch
    "topr": _COMMON
    | {
        "advantage": "group",
        "std_normalisation": False,
        "ratio": "direct",
        "ratio_level": "sequence",
        "surrogate": "weight",
        "clip_low": 0.0,
        "clip_high": 0.0,
        "clip_low_negative": 1.0,
        "clip_high_negative": 0.0,
        "aggregation": "sequence_mean_of_sums",
    },
    # arXiv 2505.10978
    "gigpo": _COMMON | {"advantage": "gigpo", "aggregation": "sequence_mean_of_means"},
    # REINFORCE with discounted returns of each turn, against the group's turns
    "turn_returns": _COMMON | {"advantage": "turn_returns"},
    # arXiv 1707.06347 with a critic of its own and GAE, 1506.02438
    "ppo": _COMMON | {"advantage": "gae"},
}
CHOICES: tuple[str, ...] = tuple(_COMMON)
"""The fields of TrainConfig that a preset fills where the recipe leaves them out."""
