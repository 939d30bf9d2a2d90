"""What a training step minimises: the seam between the trainer and the losses.

In: a batch, its rows, the outputs of the model for one micro-batch. Out: one number to minimise, and metrics. Leaves
DeepSpeed, ranks, micro-batches, the optimizer's update, weights and checkpoints to trainer.py.

    check ─► (rows are cut) ─► begin ─► [ weigh ─► loss of each micro-batch ─► the trainer's update ]* ─► end

A new objective is a module in objectives/ and a row of its table; the trainer stays as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from rockroll.train import lora
from rockroll.train.api import TrainBatch
from rockroll.train.batch import MicroBatch, Row
from rockroll.train.config import TrainConfig
from rockroll.train.policy import Policy, load_model
from rockroll.train.share import Share


class Objective(ABC):
    """One loss. It lives as long as its trainer, one on each rank; `begin` to `end` is one step."""

    together: ClassVar[int] = 1
    """How many samples that follow each other in a batch are one unit: they share a micro-batch and an update."""

    def __init__(self, config: TrainConfig, share: Share) -> None:
        """Load here what the loss needs beside the trained model, such as a frozen reference."""
        self.config, self.share = config, share

    def load(self) -> Policy:
        """The model to train, on the CPU. Its outputs are what `loss` is given."""
        model = load_model(self.config.model, dtype=self.config.dtype)
        if self.config.lora is not None:
            lora.adapt(model, self.config.lora, self.config.seed)
        return Policy(model)

    def check(self, batch: TrainBatch) -> None:  # noqa: B027  (many losses ask nothing of a batch)
        """Raises TrainError for a batch that this loss cannot learn from. Nothing was changed by then."""

    @abstractmethod
    def begin(self, batch: TrainBatch, rows: list[Row], model: Any) -> dict[str, float]:
        """What must be known before the first update, written into the rows; returns metrics of it.

        model: the engine of DeepSpeed, to be called like the model; `share.per_token` runs it over all rows.
        Raises TrainError where nothing is left to train.
        """

    @abstractmethod
    def weigh(self, rows: list[Row]) -> None:
        """Set `weight` of each row of one update: the loss is the sum over all tokens of all ranks and micro-batches,
        so that a denominator is computed from all rows."""

    @abstractmethod
    def loss(self, outputs: Tensor, micro: MicroBatch, *, first: bool) -> Tensor:
        """This micro-batch's share of the loss, a scalar with gradient.

        outputs: [n, …] what the model gives at the places that are trained. first: in the step's first pass.
        """

    @abstractmethod
    def end(self) -> dict[str, float]:
        """loss/* and other metrics of the step, the same on every rank. A collective."""

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold to go on bit-equal, beside weights and optimizer."""
        return {}

    def restore(self, state: dict[str, float]) -> None:  # noqa: B027  (many losses have no state)
        """Go on from such a state."""


def frozen(path: str, share: Share) -> Policy:
    """Another model of `path` on this rank's device that is only looked at: a reference, a teacher."""
    model = load_model(path, dtype=share.config.dtype).to(share.device)
    return Policy(model).eval().requires_grad_(False)


def counted(rows: Sequence[Row]) -> int:
    """Tokens of all these rows that enter the loss."""
    return sum(row.counted for row in rows)
