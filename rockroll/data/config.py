"""Which data set is learnt from.

In: the recipe's `data` section. Out: checked, frozen values. Leaves reading it to examples.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data set for objective sft or dpo (docs/objectives.md)."""

    path: str
    """A .jsonl file, a folder of them, `rockroll:demonstrations` (a task's own solver), or another of rockroll's, or
    `module:Class` of your own: anything with a length and examples by number, such as one of `datasets`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a class."""
    batch: int = 64
    """Examples of one step; of dpo, pairs."""
    epochs: int = 0
    """The run ends after so many passes, where `steps` allows more. 0: `steps` alone decides."""
    held_out: str = ""
    """Where the held-out examples are. Left out: some of `path`, drawn by the seed, a fifth at most, never trained."""
    held_out_examples: int = 256
    """How many; their loss is measured at the start, every eval.every steps and at the end. 0: none."""
    max_tokens: int = 0
    """Longer examples are skipped and counted (data/skipped). 0: the model's context."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("data path is a .jsonl file, a folder, rockroll:NAME or module:Class; got an empty one")
        for name, least in (("batch", 1), ("epochs", 0), ("held_out_examples", 0), ("max_tokens", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data {name} is at least {least}; got {getattr(self, name)}")
