"""How far two models are apart at each token, over the whole vocabulary. Pure arithmetic on tensors.

In: logits of student and teacher after the same prefixes. Out: KL divergences, a token each. Leaves which tokens, and
what they weigh, to objectives/distill.py.

Over the whole vocabulary and not from the sampled token alone: both rows of logits are there anyway, and the sum is
exact where an estimate from one token has a variance; its gradient is that of the token's own divergence.
"""

from __future__ import annotations

import torch
from torch import Tensor


def divergences(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(reverse, forward) KL of every token, in nats: the two ends of GKD's divergences (arXiv 2306.13649, section 2).

    student: [n, V] logits, with gradient. teacher: [n, W] logits. Models of one family pad their output layers
    differently: only the min(V, W) first ids are compared, as if there were no others.
        reverse  Σ_v p_s(v) · (log p_s(v) - log p_t(v))    seeks a mode: the student stays where the teacher would
        forward  Σ_v p_t(v) · (log p_t(v) - log p_s(v))    covers all: the student learns what else the teacher says
    Returns ([n], [n]) float32, never negative but for rounding.
    """
    width = min(student.shape[-1], teacher.shape[-1])
    ours = torch.log_softmax(student[:, :width].float(), -1)
    theirs = torch.log_softmax(teacher[:, :width].float(), -1)
    apart = ours - theirs
    return (ours.exp() * apart).sum(-1), -(theirs.exp() * apart).sum(-1)
