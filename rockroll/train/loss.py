"""The loss of one micro-batch, token by token. Pure arithmetic on tensors.

In: log-probs of trained tokens under three policies (the engine that sampled them, μ; the trainer at the step's start,
π_old; the trainer now, π), advantages, and which row each token is of. Out: a loss per token, with what was bounded.
Leaves the denominators to aggregate.py and what is summed over which micro-batches and ranks to trainer.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rockroll.train.algorithm import Correction, RatioLevel, Surrogate
from rockroll.train.extent import AT_ONCE


def token_logprobs(
    logits: Tensor, targets: Tensor, temperature: float = 1.0, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probs of targets under softmax(logits / temperature), and the entropies of that softmax.

    logits: [n, vocabulary], any float type. targets: [n] int64. Returns ([n], [n]) in float32, in nats.
    entropy_gradient: whether the entropies carry one.

    Beside the logits and, in the backward, their gradient, both in the logits' type, no tensor of their size exists.
    """
    logp, entropy = _Chosen.apply(logits, targets, temperature)  # pyright: ignore[reportGeneralTypeIssues]
    return logp, entropy if entropy_gradient else entropy.detach()


class _Chosen(torch.autograd.Function):
    """`token_logprobs`, some rows at a time; the backward computes the softmax of each again.

    With p = softmax(x), x = logits / temperature: d logp / dx = onehot - p, d entropy / dx = -p · (log p + entropy).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logp, total, entropy = (torch.empty(len(logits), device=logits.device) for _ in range(3))
        for some in _rows_at_once(logits):
            x = _scaled(logits[some], temperature)
            total[some] = torch.logsumexp(x, -1)
            logp[some] = x.gather(-1, targets[some, None])[:, 0] - total[some]
            entropy[some] = total[some] - (torch.exp(x - total[some, None]) * x).sum(-1)
        ctx.save_for_backward(logits, targets, total, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_logp, of_entropy = gradients
        logits, targets, total, entropy = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for some in _rows_at_once(logits):
            known = _scaled(logits[some], ctx.temperature) - total[some, None]
            p = torch.exp(known)
            change = torch.zeros_like(p)
            if of_logp is not None:
                change.scatter_(-1, targets[some, None], of_logp[some, None])
                change -= of_logp[some, None] * p
            if of_entropy is not None:
                change -= of_entropy[some, None] * p * (known + entropy[some, None])
            gradient[some] = change if ctx.temperature == 1.0 else change / ctx.temperature
        return gradient, None, None


def _rows_at_once(logits: Tensor) -> list[slice]:
    rows = max(1, AT_ONCE // max(1, logits.shape[-1]))
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1.0 else logits.float() / temperature


# ---------------------------------------------------------------------------------------------------------------
# Ratios
# ---------------------------------------------------------------------------------------------------------------


def log_ratios(logp: Tensor, base: Tensor, row: Tensor, *, level: RatioLevel) -> Tensor:
    """log p / p_base of each token (token), of its whole row (sequence), or that over the row's length (geometric:
    GSPO's s_i, arXiv 2507.18071).

    logp: [n], may carry a gradient. base: [n]. row: [n] int64, which row a token is of. Returns [n]: a row's tokens
    share one value where the level is the row's.
    """
    difference = logp - base
    if level == "token":
        return difference
    sums, counts = row_sums(difference, row), row_sums(torch.ones_like(difference), row)
    return (sums if level == "sequence" else sums / counts.clamp(min=1))[row]


def row_sums(values: Tensor, row: Tensor) -> Tensor:
    """[rows] sums of values [n] by row [n]."""
    rows = int(row.max()) + 1 if len(row) else 0
    return torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(0, row, values)


# ---------------------------------------------------------------------------------------------------------------
# Surrogates
# ---------------------------------------------------------------------------------------------------------------


def surrogate(
    logp: Tensor,
    log_ratio: Tensor,
    advantages: Tensor,
    *,
    kind: Surrogate,
    low: float,
    high: float,
    low_negative: float | None = None,
    high_negative: float | None = None,
    dual: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The objective of each token, to be minimised, and whether a bound took its gradient, or part of it, away.

    logp, log_ratio: [n] with gradient. advantages: [n]. With r = exp(log_ratio) and b = r within [1 - low, 1 + high]
    (tokens of negative advantage: low_negative, high_negative where given):
        clip    -min(r·A, b·A)              PPO, arXiv 1707.06347; two bounds: DAPO, arXiv 2503.14476
                dual > 1: for A < 0 no more than -dual·A (dual clip, arXiv 1912.09729)
        weight  -stop_gradient(b)·A·logp    CISPO, arXiv 2506.13585; TOPR, arXiv 2503.14286
        plain   -A·logp                     REINFORCE, Williams 1992
    Returns ([n], [n] bool).
    """
    if kind == "plain":
        return -advantages * logp, torch.zeros_like(logp, dtype=torch.bool)
    ratio = torch.exp(log_ratio)
    negative = advantages < 0
    floors = ratio.new_tensor([1 - low, 1 - (low if low_negative is None else low_negative)])
    ceilings = ratio.new_tensor([1 + high, 1 + (high if high_negative is None else high_negative)])
    floor, ceiling = floors[negative.long()], ceilings[negative.long()]
    bounded = torch.minimum(torch.maximum(ratio, floor), ceiling)
    if kind == "weight":
        return -bounded.detach() * advantages * logp, (bounded != ratio).detach()
    plain, clipped = ratio * advantages, bounded * advantages
    value = torch.minimum(plain, clipped)
    flags = clipped < plain
    if dual:
        least = dual * advantages
        flags = flags | (negative & (least > value))
        value = torch.where(negative, torch.maximum(value, least), value)
    return -value, flags.detach()


# ---------------------------------------------------------------------------------------------------------------
# Correction for what the engine's policy was
# ---------------------------------------------------------------------------------------------------------------


def correction(
    old: Tensor, behaviour: Tensor, row: Tensor, *, kind: Correction, level: RatioLevel, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """What a token sampled by μ counts for π_old: ρ = π_old / μ at a level, as a weight or as a filter.

    old: [n] log-probs that the trainer gives at the step's start. behaviour: [n] the engine's. row: [n] int64.
        truncate  weight min(ρ, high)                                  (arXiv 1802.01561; TIS: Yao et al. 2025)
        mask      weight ρ where low ≤ ρ ≤ high, else dropped          (IcePop: arXiv 2510.18855)
        reject    weight 1; a row with a token out of [low, high] is dropped, or one that is out as a whole
    Returns ([n] weights without gradient, 0 where dropped, [n] bool: kept). What is dropped is to leave the
    denominators too.
    """
    kept = torch.ones_like(old, dtype=torch.bool)
    if kind == "off":
        return torch.ones_like(old), kept
    rho = torch.exp(log_ratios(old, behaviour, row, level=level)).detach()
    if kind == "truncate":
        return rho.clamp(max=high), kept
    kept = (rho >= low) & (rho <= high)
    if kind == "mask":
        return rho * kept, kept
    kept = row_sums((~kept).to(old.dtype), row)[row] == 0
    return kept.to(old.dtype), kept


# ---------------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------------


def value_loss(values: Tensor, old: Tensor, returns: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """The critic's loss of each token, and whether the bound took its gradient away.

    values: [n] with gradient. old: [n] those at the step's start. returns: [n] what they should have been.
        clip > 0   max((V - R)², (V_old + bounded(V - V_old, ±clip) - R)²) / 2     arXiv 2005.12729
        clip 0     (V - R)² / 2                                                    arXiv 1707.06347
    Returns ([n], [n] bool).
    """
    plain = (values - returns).square()
    if not clip:
        return plain / 2, torch.zeros_like(values, dtype=torch.bool)
    bounded = (old + (values - old).clamp(-clip, clip) - returns).square()
    return torch.maximum(plain, bounded) / 2, (bounded > plain).detach()


# ---------------------------------------------------------------------------------------------------------------
# Distance from the reference
# ---------------------------------------------------------------------------------------------------------------


def k1(logp: Tensor, reference: Tensor) -> Tensor:
    """log p - log p_ref: the unbiased estimate of KL(policy, reference) from the policy's samples (Schulman 2020).

    logp, reference: [n]. Returns [n], of either sign. Its own gradient averages to zero: it belongs in a reward.
    """
    return logp - reference


def k2(logp: Tensor, reference: Tensor) -> Tensor:
    """(log p - log p_ref)² / 2 (Schulman 2020): biased as a value, its gradient is that of the KL.

    logp, reference: [n]. Returns [n], never negative.
    """
    return (logp - reference).square() / 2


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """r - 1 - log r, r = p_ref / p: unbiased, and of less variance than k1 (Schulman 2020).

    logp, reference: [n]. Returns [n], never negative, 0 where they agree.
    """
    log_ratio = reference - logp
    return torch.exp(log_ratio) - 1 - log_ratio


KL = {"k1": k1, "k2": k2, "k3": k3}


class KLCoefficient:
    """The weight of the KL: fixed, or moved towards a target after each step (arXiv 1909.08593).

    e = clip(observed / target - 1, -0.2, 0.2); value ← value · (1 + e · rate). target 0: fixed.
    """

    def __init__(self, value: float, target: float = 0.0, rate: float = 0.1) -> None:
        self.value, self.target, self.rate = value, target, rate

    def update(self, observed: float) -> None:
        """observed: mean KL per token of the step that was done, in nats."""
        if self.target:
            error = max(-0.2, min(0.2, observed / self.target - 1))
            self.value *= 1 + error * self.rate
