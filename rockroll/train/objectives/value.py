"""The critic's loss: each sampled token's value learns the return that came after it.

In: a batch whose samples carry the values of the critic at the step's start. Out: the clipped squared error and its
metrics. Leaves returns to estimates.py, the pure formula to loss.py.

A value is of the state before its token: the place in the sequence that also predicts the token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rockroll.errors import TrainError
from rockroll.train.aggregate import row_weights
from rockroll.train.api import TrainBatch
from rockroll.train.batch import MicroBatch, Row
from rockroll.train.credit import episodes_of
from rockroll.train.estimates import estimates, explained_variance
from rockroll.train.loss import value_loss
from rockroll.train.objective import Objective
from rockroll.train.policy import Policy, load_value_model
from rockroll.train.share import Share, Totals

_SUMS = ("tokens", "value", "clip")


class ValueObjective(Objective):
    """`train.objective: value`; made by critic.py, not by recipes."""

    def load(self) -> Policy:
        model = load_value_model(self.config.model, dtype=self.config.dtype)
        return Policy(model, model.score)

    def check(self, batch: TrainBatch) -> None:
        episodes_of(batch)

    def begin(self, batch: TrainBatch, rows: list[Row], model: Any) -> dict[str, float]:
        assert self.config.critic is not None
        self._clip = self.config.critic.clip
        self._totals = Totals(self.share, _SUMS)
        values, returns = [], []
        for row, (_, target) in zip(rows, estimates(batch, rows, self.config), strict=True):
            row.old = torch.tensor(batch.samples[row.sample].values, dtype=torch.float32)
            row.advantages = target
            values.append(row.old)
            returns.append(target)
        all_values, all_returns = torch.cat(values), torch.cat(returns)
        if not bool(torch.isfinite(all_returns).all()):
            raise TrainError(
                f"step {batch.step}: returns must be finite numbers: does the critic diverge? lower its lr"
            )
        return {
            "loss/explained_variance": explained_variance(all_values, all_returns),
            "loss/value_mean": float(all_values.mean()),
            "loss/return_mean": float(all_returns.mean()),
        }

    def weigh(self, rows: list[Row]) -> None:
        weights = row_weights([row.counted for row in rows], [row.episode for row in rows], kind="token_mean")
        for row, weight in zip(rows, weights, strict=True):
            row.weight = weight

    def loss(self, outputs: Tensor, micro: MicroBatch, *, first: bool) -> Tensor:
        assert micro.old is not None
        per_token, clipped = value_loss(outputs[:, 0].float(), micro.old, micro.advantages, clip=self._clip)
        self._totals.add(tokens=len(per_token), value=per_token.detach().sum(), clip=clipped.sum())
        return (per_token * micro.weights).sum()

    def end(self) -> dict[str, float]:
        sums = self._totals.reduce()
        return {"loss/value": sums["value"] / sums["tokens"], "loss/clip_fraction": sums["clip"] / sums["tokens"]}


def values_of(share: Share, engine: Any, batch: TrainBatch, rows: list[Row]) -> list[list[float]]:
    """The critic's value of every trained token of every sample of a batch; empty for a sample that has none."""
    found: list[list[float]] = [[] for _ in batch.samples]
    told = share.per_token(engine, rows, lambda outputs, _: outputs[:, 0].float())
    for row, values in zip(rows, told, strict=True):
        found[row.sample] = values.tolist()
    return found
