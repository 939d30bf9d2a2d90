"""The loss of one micro-batch, token by token. Pure arithmetic on tensors.

In: log-probs of trained tokens under the policy, the old policy and the engine, advantages, weights that already
hold the global denominator. Out: a scalar to differentiate, and sums to report. Leaves what is summed over which
micro-batches and ranks to trainer.py.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(
    logits: Tensor, targets: Tensor, temperature: float = 1.0, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probs of targets under softmax(logits / temperature), and the entropies of that softmax.

    logits: [n, vocabulary], any float type. targets: [n] int64. Returns ([n], [n]) in float32, in nats.
    entropy_gradient: whether the entropies carry one; it costs another tensor of the logits' size.
    """
    scaled = logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    total = torch.logsumexp(scaled, -1)
    logp = scaled.gather(-1, targets[:, None])[:, 0] - total
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        return logp, total - (torch.exp(scaled - total[:, None]) * scaled).sum(-1)


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """The k3 estimate of KL(policy, reference) from the policy's samples: r - 1 - log r, r = p_ref / p (Schulman 2020).

    logp, reference: [n]. Returns [n], never negative, 0 where they agree.
    """
    log_ratio = reference - logp
    return torch.exp(log_ratio) - 1 - log_ratio


def importance_weights(old: Tensor, behaviour: Tensor, cap: float) -> Tensor:
    """Truncated importance weights min(p_old / p_behaviour, cap) of engine-sampled tokens (arXiv 1802.01561's rho).

    old: [n] log-probs that the trainer gives them at the step's start. behaviour: [n] the engine's. cap: 0 is off.
    Returns [n], without gradient.
    """
    if cap == 0:
        return torch.ones_like(old)
    return torch.exp(old - behaviour).clamp(max=cap).detach()


def policy_loss(
    logp: Tensor, old: Tensor, advantages: Tensor, importance: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective, to be minimised, per token (arXiv 1707.06347, eq. 7; two bounds: arXiv 2503.14476).

    logp: [n] with gradient. old, advantages, importance: [n] without.
    Returns ([n] losses -w·min(r·A, clip(r, 1-clip_low, 1+clip_high)·A) with r = exp(logp - old), [n] bool: the clip
    took this token's gradient away).
    """
    ratio = torch.exp(logp - old)
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return -importance * torch.minimum(plain, clipped), (clipped < plain).detach()
