"""The adapter of a recipe: `train.lora`.

In: the recipe's words. Out: a checked LoraConfig. Pure, no torch. Leaves whether the model has such layers to lora.py.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Train two thin matrices beside each chosen one, W + alpha/rank · B·A, and nothing else (arXiv 2106.09685)."""

    rank: int = 16
    """Columns of B, rows of A."""
    alpha: float = 32.0
    """B·A counts alpha / rank times."""
    targets: str | tuple[str, ...] = ALL_LINEAR
    """Which layers: `all-linear` (all but the output layer), or the ends of their names, such as [q_proj, v_proj]."""
    dropout: float = 0.0
    """Of what A reads, while training: the trained log-probs are then not quite those that were sampled."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"train lora rank must be at least 1 (8 to 64 is usual); got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"train lora alpha must be over 0 (twice the rank is usual); got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"train lora dropout must be in [0, 1); got {self.dropout}")
        if isinstance(self.targets, str):
            if self.targets != ALL_LINEAR:
                raise ValueError(
                    f"train lora targets must be {ALL_LINEAR} or a list of layer names such as [q_proj, v_proj]; "
                    f"got {self.targets!r}"
                )
        elif not self.targets or not all(self.targets):
            raise ValueError(
                f"train lora targets must name at least one layer, such as [q_proj, v_proj]; got {list(self.targets)}"
            )
