"""How large a trainer becomes, by arithmetic alone: its longest micro-batch, and what it holds beside it.

In: lengths, budgets, a model's folder. Out: shapes and bytes. Pure, no torch: `rockroll plan` starts nothing. Leaves
what activations take to worst_case.py, which measures it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from rockroll.train.config import TrainConfig

AT_ONCE = 1 << 24
"""Numbers of the logits that loss.py has in float32 at a time: 64 MB, of which there are up to five."""


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


def shapes_of(model: Path) -> list[tuple[str, list[int]]]:
    """(name, shape) of the tensors in the safetensors files of a folder, by their headers."""
    found: list[tuple[str, list[int]]] = []
    for file in model.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        found += [(name, tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"]
    return found


def parameters_of(model: Path) -> int:
    """How many numbers those files hold."""
    return sum(math.prod(shape) for _, shape in shapes_of(model))


def weights_bytes(model: Path, config: TrainConfig) -> int:
    """Of what the trainer exports."""
    return parameters_of(model) * (2 if config.dtype == "bfloat16" else 4)


def logits_bytes(tokens: int, vocabulary: int, config: TrainConfig) -> int:
    """What the loss of so many trained tokens takes at its peak (measured: tests/train/test_loss.py holds it).

    The logits and their gradient in the model's type, and AT_ONCE of them in float32. Distillation compares two whole
    distributions in float32, and keeps them for the backward.
    """
    width = 2 if config.dtype == "bfloat16" else 4
    if config.objective == "value":
        return 0  # one number a token
    if config.objective == "distill":
        return tokens * vocabulary * (2 * width + 24)
    return tokens * vocabulary * 2 * width + 5 * 4 * min(AT_ONCE, tokens * vocabulary)


def adapter_parameters(model: Path, config: TrainConfig) -> int:
    """How many numbers an adapter trains, were every matrix of the layers adapted; 0 where the whole model is trained.

    A matrix [out, in] has rank · (out + in) (arXiv 2106.09685, section 4.1). Layers are numbered in the tensors' names.
    """
    if config.lora is None:
        return 0
    return config.lora.rank * sum(
        sum(shape) for name, shape in shapes_of(model) if len(shape) == 2 and any(p.isdigit() for p in name.split("."))
    )


def state_bytes(parameters: int, config: TrainConfig, adapter: int = 0) -> int:
    """Weights, gradients and AdamW's state of one rank, without activations (ZeRO: arXiv 1910.02054, section 3.1).

    adapter: parameters of one; it alone is trained then, and the model's are weights and nothing else.

    Stage 0 holds weights, gradients and two moments. From stage 1 on a float32 copy of the weights and the moments are
    shared among the ranks, from 2 on the gradients too, at 3 the weights.
    """
    size, ranks, stage = (2 if config.dtype == "bfloat16" else 4), config.ranks, config.zero_stage
    trained = parameters if config.lora is None else adapter
    whole = trained if config.lora is None else parameters + adapter
    weights = whole * size // (ranks if stage == 3 else 1)
    gradients = trained * size // (ranks if stage >= 2 else 1)
    optimizer = trained * (8 if stage == 0 else 12) // (ranks if stage else 1)
    return weights + gradients + optimizer
