"""Distillation on the student's own samples: at each token it sampled, the student is drawn to what a teacher says.

In: sampled tokens (rewards are not looked at), a teacher's model folder. Out: the mean divergence over sampled tokens,
by the recipe's aggregation. Leaves the formula to divergence.py.

This is GKD with student data alone (arXiv 2306.13649, algorithm 1, λ = 1): no gradient goes through the sampling. The
divergence is of the two models' own distributions, at temperature 1, whatever the temperature of sampling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rockroll.train.aggregate import aggregate
from rockroll.train.api import TrainBatch
from rockroll.train.batch import MicroBatch, Row
from rockroll.train.config import TrainConfig
from rockroll.train.divergence import divergences
from rockroll.train.objective import Objective, frozen
from rockroll.train.share import Share, Totals
from rockroll.train.teacher import check_tokenizer


class DistillObjective(Objective):
    """`train.objective: distill`."""

    def __init__(self, config: TrainConfig, share: Share) -> None:
        super().__init__(config, share)
        check_tokenizer(config.model, config.teacher)
        self.teacher = frozen(config.teacher, share)

    def begin(self, batch: TrainBatch, rows: list[Row], model: Any) -> dict[str, float]:
        self._totals = Totals(self.share, ["tokens", "reverse", "forward", "same"])
        return {}

    def weigh(self, rows: list[Row]) -> None:
        aggregate(rows, self.config)

    def loss(self, outputs: Tensor, micro: MicroBatch, *, first: bool) -> Tensor:
        with torch.no_grad():
            theirs = self.teacher(micro.inputs, micro.index)
        reverse, forward = divergences(outputs, theirs)
        self._totals.add(
            tokens=len(reverse),
            reverse=reverse.detach().sum(),
            forward=forward.detach().sum(),
            same=(outputs.detach().argmax(-1) == theirs.argmax(-1)).sum(),
        )
        return ((reverse if self.config.divergence == "reverse" else forward) * micro.weights).sum()

    def end(self) -> dict[str, float]:
        sums = self._totals.reduce()
        means = {name: sums[name] / sums["tokens"] for name in sums}
        return {
            "loss/distill": means[self.config.divergence],
            "loss/kl_reverse": means["reverse"],
            "loss/kl_forward": means["forward"],
            "loss/agreement": means["same"],
        }
