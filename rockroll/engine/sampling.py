"""One token for each row of logits.

In: logits, each request's temperature and top_p, one uniform number per row. Out: ids, and the log-probs they were
drawn with. The uniform number is a hash of (seed, index), so a request draws the same numbers in any batch.
Leaves stop tokens and lengths to the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def uniforms(seeds: Sequence[int], indices: Sequence[int]) -> np.ndarray:
    """[n] float64 in [0, 1), each a function of (seed, index) alone: splitmix64 of the seed, jumped to the index."""
    with np.errstate(over="ignore"):
        state = _mix(np.array([seed & _MASK for seed in seeds], dtype=np.uint64))
        state = _mix(state + (np.array(indices, dtype=np.uint64) + np.uint64(1)) * _GOLDEN)
    # 52 bits, not 53: then u * total < total holds in float64 for any total, and no draw falls off the end
    return (state >> np.uint64(12)) * 2.0**-52


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sample(
    logits: Tensor, temperatures: Sequence[float], top_ps: Sequence[float], draws: np.ndarray
) -> tuple[list[int], list[float]]:
    """Inverse-CDF sampling of n rows.

    logits: [n, vocab]. temperatures: [n], 0 is greedy. top_ps: [n] in (0, 1]. draws: [n] in [0, 1).
    Returns n ids and the natural log of the probability each was drawn with (after temperature and top_p); a greedy
    row's is that at temperature 1.
    """
    logits = logits.float()
    greedy = [temperature == 0 for temperature in temperatures]
    if any(temperature not in (0, 1) for temperature in temperatures):
        scale = torch.tensor([temperature or 1.0 for temperature in temperatures], device=logits.device)
        logits = logits / scale.unsqueeze(1)
    logp = torch.log_softmax(logits, dim=-1)
    if all(greedy):
        ids = logp.argmax(-1, keepdim=True)
    else:
        if any(top_p < 1 and not is_greedy for top_p, is_greedy in zip(top_ps, greedy, strict=True)):
            kept = [1.0 if is_greedy else top_p for top_p, is_greedy in zip(top_ps, greedy, strict=True)]
            logp = nucleus(logp, torch.tensor(kept, device=logp.device))
        cdf = logp.exp().cumsum(-1, dtype=torch.float64)
        wanted = torch.from_numpy(draws).to(cdf.device).unsqueeze(1) * cdf[:, -1:]
        ids = torch.searchsorted(cdf, wanted, right=True)
        if any(greedy):
            ids = torch.where(torch.tensor(greedy, device=ids.device).unsqueeze(1), logp.argmax(-1, keepdim=True), ids)
    return ids.squeeze(1).tolist(), logp.gather(1, ids).squeeze(1).tolist()


def nucleus(logp: Tensor, top_p: Tensor) -> Tensor:
    """Log-probs of the smallest set of tokens that holds top_p, renormalised; -inf outside.

    logp: [n, vocab], normalised. top_p: [n]. The most probable token is always kept.
    """
    ordered, order = logp.sort(dim=-1, descending=True)
    probs = ordered.exp()
    before = probs.cumsum(-1) - probs
    outside = (before >= top_p.unsqueeze(1)) & (top_p.unsqueeze(1) < 1)
    outside[:, 0] = False
    kept = logp.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return torch.log_softmax(kept, dim=-1)
