"""The policy gradient: rewarded episodes become likelier, in the arithmetic that the recipe's algorithm names.

In: sampled tokens with the engine's log-probs, rewards and groups. Out: the loss of algorithm.py's table, and its
metrics. Leaves advantages to credit.py, the formulas of a token to loss.py, denominators to aggregate.py.

Before the first update: the log-probs that are needed beforehand, the filters, the advantages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rockroll.errors import TrainError
from rockroll.train import lora
from rockroll.train.aggregate import aggregate
from rockroll.train.api import TrainBatch
from rockroll.train.batch import MicroBatch, Row
from rockroll.train.config import TrainConfig
from rockroll.train.credit import assign, episodes_of
from rockroll.train.loss import KL, KLCoefficient, correction, k3, log_ratios, surrogate, token_logprobs
from rockroll.train.objective import Objective, counted, frozen
from rockroll.train.share import Share, Totals

_SUMS = (
    "tokens",
    "policy",
    "entropy",
    "kl",
    "clip",
    "ratio",
    "approx_kl",
    "correction",
    "bounded",
    "dropped",
    "diff",
    "diff_count",
)


class PolicyObjective(Objective):
    """`train.objective: policy`."""

    def __init__(self, config: TrainConfig, share: Share) -> None:
        super().__init__(config, share)
        self.reference = frozen(config.model, share) if config.has_reference else None
        self.kl = KLCoefficient(config.kl, config.kl_target)

    def check(self, batch: TrainBatch) -> None:
        episodes_of(batch)
        for sample in batch.samples:
            if len(sample.logprobs) != len(sample.ids):
                raise TrainError(
                    f"a sample's lists must be equally long; got {len(sample.ids)} ids, {len(sample.logprobs)} logprobs"
                )

    def begin(self, batch: TrainBatch, rows: list[Row], model: Any) -> dict[str, float]:
        self._temperature = batch.temperature
        self._totals = Totals(self.share, _SUMS, ["diff_max"])
        self._tokens = sum(len(row.targets) for row in rows)
        self._updates = 0
        if self.config.kl:
            start = self.reference or lora.Base(model.module)
            for row, logp in zip(rows, self.share.per_token(start, rows, self._logprobs), strict=True):
                row.reference = logp
        self._penalties = self._look_before(rows, model) if self.config.needs_old else {}
        metrics = assign(batch, rows, self.config, self._penalties)
        if not counted(rows):
            raise TrainError(
                f"step {batch.step}: train correction {self.config.correction} dropped every token; widen "
                f"correction_low {self.config.correction_low} and correction_high {self.config.correction_high}, or "
                "look at logp_diff: does the engine have these weights?"
            )
        return metrics

    def _look_before(self, rows: list[Row], model: Any) -> dict[int, float]:
        """Every row's old log-probs, and what a filter leaves of it.

        Returns what each episode's reward loses for its distance from the reference, where that is taken from rewards.
        """
        for row, old in zip(rows, self.share.per_token(model, rows, self._logprobs), strict=True):
            row.old = old
            _, kept = self._corrected(old, row.behaviour, torch.zeros(len(old), dtype=torch.int64))
            row.kept = None if bool(kept.all()) else kept
        if not self.config.kl or self.config.kl_in == "loss":
            return {}
        penalties: dict[int, float] = {}
        for row in rows:
            assert row.old is not None and row.reference is not None
            kl = float(KL[self.config.kl_estimator](row.old, row.reference).sum())
            penalties[row.episode] = penalties.get(row.episode, 0.0) + self.kl.value * kl
        return penalties

    def _logprobs(self, logits: Tensor, micro: MicroBatch) -> Tensor:
        return token_logprobs(logits, micro.targets, self._temperature)[0]

    def _corrected(self, old: Tensor, behaviour: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        assert config.correction is not None
        return correction(
            old,
            behaviour,
            row,
            kind=config.correction,
            level=config.correction_level,
            low=config.correction_low,
            high=config.correction_high,
        )

    def weigh(self, rows: list[Row]) -> None:
        self._updates += 1
        aggregate(rows, self.config)

    def loss(self, outputs: Tensor, micro: MicroBatch, *, first: bool) -> Tensor:
        config, totals = self.config, self._totals
        logp, entropy = token_logprobs(outputs, micro.targets, self._temperature, entropy_gradient=config.entropy > 0)
        now = logp.detach()
        old = now if micro.old is None else micro.old
        if config.ratio == "direct":
            base, importance = micro.behaviour, torch.ones_like(now)
        else:
            base, (importance, _) = old, self._corrected(old, micro.behaviour, micro.row)
        assert config.ratio_level and config.surrogate and config.clip_low is not None and config.clip_high is not None
        ratio = log_ratios(logp, base, micro.row, level=config.ratio_level)
        policy, clipped = surrogate(
            logp,
            ratio,
            micro.advantages,
            kind=config.surrogate,
            low=config.clip_low,
            high=config.clip_high,
            low_negative=config.clip_low_negative,
            high_negative=config.clip_high_negative,
            dual=config.dual_clip,
        )
        policy = importance * policy
        per_token = policy
        counts = micro.weights > 0
        if micro.reference is not None and config.kl_in == "loss":
            kl = KL[config.kl_estimator](logp, micro.reference)
            per_token = per_token + self.kl.value * kl
            totals.add(kl=kl.detach()[counts].sum())
        if config.entropy:
            per_token = per_token - config.entropy * entropy
        # How far the trainer's log-probs at the step's start are from the engine's: where they were not asked for
        # beforehand, the first update alone still has them.
        if first and (micro.old is not None or self._updates == 1):
            apart = (old - micro.behaviour).abs()
            totals.add(diff=apart.sum(), diff_count=len(apart))
            totals.most(diff_max=apart.max())
        totals.add(
            tokens=counts.sum(),
            policy=policy.detach()[counts].sum(),
            entropy=entropy.detach()[counts].sum(),
            clip=clipped[counts].sum(),
            ratio=torch.exp(ratio.detach()[counts]).sum(),
            approx_kl=k3(base[counts], now[counts]).sum(),
            correction=importance[counts].sum(),
            bounded=(importance[counts] >= config.correction_high).sum() if config.correction == "truncate" else 0.0,
            dropped=(~counts).sum(),
        )
        return (per_token * micro.weights).sum()

    def end(self) -> dict[str, float]:
        sums = self._totals.reduce()
        per_token = {name: sums[name] / sums["tokens"] for name in _SUMS if not name.startswith("diff")}
        metrics = {
            "loss/policy": per_token["policy"],
            "loss/entropy": per_token["entropy"],
            "loss/kl": per_token["kl"],
            "loss/clip_fraction": per_token["clip"],
            "loss/ratio_mean": per_token["ratio"],
            "loss/approx_kl": per_token["approx_kl"],
            "loss/kl_coefficient": self.kl.value,
            "loss/correction_mean": per_token["correction"],
            "loss/correction_bounded_fraction": per_token["bounded"],
            "loss/correction_dropped_fraction": sums["dropped"] / (sums["tokens"] + sums["dropped"]),
            "logp_diff/mean_abs": sums["diff"] / sums["diff_count"],
            "logp_diff/max_abs": sums["diff_max"],
        }
        if self._penalties:
            metrics["loss/kl"] = sum(self._penalties.values()) / self.kl.value / self._tokens
        if self.config.kl:
            self.kl.update(metrics["loss/kl"])
        return metrics

    def state(self) -> dict[str, float]:
        return {"kl": self.kl.value}

    def restore(self, state: dict[str, float]) -> None:
        if self.config.kl_target:
            self.kl.value = state["kl"]
