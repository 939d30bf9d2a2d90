"""Preferences: of two answers to one prompt the chosen one becomes likelier, against the start model: a frozen copy of
it, or, where an adapter is trained, the model without it.

In: samples in pairs, chosen before rejected, in one group and with the higher reward. Out: the mean of eq. 7
(arXiv 2305.18290) over pairs. Leaves the formula to preference.py, making pairs to data/.

The two answers of a pair share a micro-batch: their log-probs enter one logarithm. What the reference says of them is
computed once a step.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from rockroll.errors import TrainError
from rockroll.train import lora
from rockroll.train.api import TrainBatch
from rockroll.train.batch import MicroBatch, Row
from rockroll.train.config import TrainConfig
from rockroll.train.loss import row_sums, token_logprobs
from rockroll.train.objective import Objective, frozen
from rockroll.train.preference import dpo
from rockroll.train.share import Share, Totals


class DpoObjective(Objective):
    """`train.objective: dpo`."""

    together: ClassVar[int] = 2

    def __init__(self, config: TrainConfig, share: Share) -> None:
        super().__init__(config, share)
        self.reference = frozen(config.model, share) if config.has_reference else None
        """None: the trained model with its adapters off."""

    def check(self, batch: TrainBatch) -> None:
        samples = batch.samples
        if len(samples) % 2:
            raise TrainError(
                f"step {batch.step}: dpo takes samples in pairs, chosen before rejected; got {len(samples)}"
            )
        for chosen, rejected in zip(samples[::2], samples[1::2], strict=True):
            if chosen.group != rejected.group or not chosen.reward > rejected.reward:
                raise TrainError(
                    f"step {batch.step}: the answers of a pair share a group, and the first has the higher reward; got "
                    f"groups {chosen.group} and {rejected.group}, rewards {chosen.reward} and {rejected.reward}"
                )
            if not (any(chosen.mask) and any(rejected.mask)):
                raise TrainError(f"step {batch.step}: both answers of pair {chosen.group} need a token that is trained")

    def begin(self, batch: TrainBatch, rows: list[Row], model: Any) -> dict[str, float]:
        self._totals = Totals(self.share, ["pairs", "loss", "margin", "right", "chosen", "rejected"])
        start = self.reference or lora.Base(model.module)
        told = self.share.per_token(start, rows, lambda logits, micro: token_logprobs(logits, micro.targets)[0])
        for row, logp in zip(rows, told, strict=True):
            row.reference = logp
        return {}

    def weigh(self, rows: list[Row]) -> None:
        self._pairs = len(rows) // 2
        for row in rows:
            row.weight = 1 / self._pairs

    def loss(self, outputs: Tensor, micro: MicroBatch, *, first: bool) -> Tensor:
        logp, _ = token_logprobs(outputs, micro.targets)
        assert micro.reference is not None
        ours, theirs = row_sums(logp, micro.row), row_sums(micro.reference, micro.row)
        losses, chosen, rejected = dpo(ours[::2], ours[1::2], theirs[::2], theirs[1::2], beta=self.config.dpo_beta)
        margins = (chosen - rejected).detach()
        self._totals.add(
            pairs=len(losses),
            loss=losses.detach().sum(),
            margin=margins.sum(),
            right=(margins > 0).sum(),
            chosen=chosen.detach().sum(),
            rejected=rejected.detach().sum(),
        )
        return losses.sum() / self._pairs

    def end(self) -> dict[str, float]:
        sums = self._totals.reduce()
        means = {name: sums[name] / sums["pairs"] for name in sums}
        return {
            "loss/dpo": means["loss"],
            "loss/margin": means["margin"],
            "loss/preference_accuracy": means["right"],
            "loss/reward_chosen": means["chosen"],
            "loss/reward_rejected": means["rejected"],
        }
