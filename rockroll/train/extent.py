"""How large a trainer becomes, by arithmetic alone: its longest micro-batch, and what it holds beside it.

In: lengths, budgets, a model's folder. Out: shapes and bytes. Pure, no torch: `rockroll plan` starts nothing. Leaves
what activations take to worst_case.py, which measures it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from rockroll.train.config import TrainConfig


def widest(longest: int, budget: int, together: int = 1) -> list[tuple[int, int]]:
    """(rows, length) of the micro-batches that no other exceeds: the longest rows, as many as the budget takes, and,
    where those leave much of it unused, shorter ones that fill it. together: rows that cannot be parted.

    >>> widest(3000, 8192)
    [(2, 3000), (3, 2730)]
    """
    fit = max(1, budget // together // longest)
    shapes = [(fit * together, longest)]
    shorter = budget // together // (fit + 1)
    if (fit + 1) * shorter > 1.05 * fit * longest:
        shapes.append(((fit + 1) * together, shorter))
    return shapes


def context_of(model: Path) -> int:
    """Tokens of the longest sequence that a model takes; 0 where its config does not say."""
    config = json.loads((model / "config.json").read_text())
    return int(config.get("text_config", config).get("max_position_embeddings", 0))


def parameters_of(model: Path) -> int:
    """How many numbers the safetensors files of a folder hold, by their headers."""
    total = 0
    for file in model.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total


def weights_bytes(model: Path, config: TrainConfig) -> int:
    """Of what the trainer exports."""
    return parameters_of(model) * (2 if config.dtype == "bfloat16" else 4)


def state_bytes(parameters: int, config: TrainConfig) -> int:
    """Weights, gradients and AdamW's state of one rank, without activations (ZeRO: arXiv 1910.02054, section 3.1).

    Stage 0 holds weights, gradients and two moments. From stage 1 on a float32 copy of the weights and the moments are
    shared among the ranks, from 2 on the gradients too, at 3 the weights.
    """
    size, ranks, stage = (2 if config.dtype == "bfloat16" else 4), config.ranks, config.zero_stage
    weights = parameters * size // (ranks if stage == 3 else 1)
    gradients = parameters * size // (ranks if stage >= 2 else 1)
    optimizer = parameters * (8 if stage == 0 else 12) // (ranks if stage else 1)
    return weights + gradients + optimizer
