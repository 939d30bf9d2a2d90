"""Supervised learning: the tokens of written answers become likelier.

In: conversations as ids, with a mask over what the assistant says. Out: the mean negative log-likelihood, by the
recipe's aggregation (a conversation is a sequence). Leaves reading and encoding to data/.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rockroll.train.aggregate import aggregate
from rockroll.train.api import TrainBatch
from rockroll.train.batch import MicroBatch, Row
from rockroll.train.loss import token_logprobs
from rockroll.train.objective import Objective
from rockroll.train.share import Totals


class SftObjective(Objective):
    """`train.objective: sft`."""

    def begin(self, batch: TrainBatch, rows: list[Row], model: Any) -> dict[str, float]:
        self._totals = Totals(self.share, ["tokens", "loss", "right", "entropy"])
        return {}

    def weigh(self, rows: list[Row]) -> None:
        aggregate(rows, self.config)

    def loss(self, outputs: Tensor, micro: MicroBatch, *, first: bool) -> Tensor:
        logp, entropy = token_logprobs(outputs, micro.targets)
        self._totals.add(
            tokens=len(logp),
            loss=-logp.detach().sum(),
            right=(outputs.detach().argmax(-1) == micro.targets).sum(),
            entropy=entropy.sum(),
        )
        return -(logp * micro.weights).sum()

    def end(self) -> dict[str, float]:
        sums = self._totals.reduce()
        return {
            "loss/sft": sums["loss"] / sums["tokens"],
            "loss/token_accuracy": sums["right"] / sums["tokens"],
            "loss/entropy": sums["entropy"] / sums["tokens"],
        }
