"""One rank of the trainer: a batch in, one weight version later out, by DeepSpeed.

In: the whole batch, the same on every rank. Out: the same report on every rank. Each rank takes its share of the rows
by the same arithmetic, so denominators are global without a message. Leaves processes and wires to server.py.

A step, read from the top: rows (cut, checked) → the log-probs that are needed beforehand → filters and advantages →
for every epoch and minibatch: weights, micro-batches, forward and backward each, one optimizer update → metrics summed
over ranks.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rockroll.errors import TrainError
from rockroll.train import checkpoint, lora, ranks
from rockroll.train.aggregate import row_weights
from rockroll.train.api import Exported, StepReport, TrainBatch, TrainerInfo
from rockroll.train.batch import MicroBatch, Row, collate, make_row, padding_fraction, plan
from rockroll.train.config import TrainConfig
from rockroll.train.credit import assign, episodes_of
from rockroll.train.export import Piece, Walk, adapter, export, weights
from rockroll.train.loss import KL, KLCoefficient, correction, k3, log_ratios, surrogate, token_logprobs
from rockroll.train.policy import Policy, check_folder, load_model, parameter_groups
from rockroll.train.shards import Shard, shards

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


class _Totals:
    """Sums over trained tokens of this step, on this rank until `reduce`."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self._diff_max = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, **sums: Tensor | float) -> None:
        for name, value in sums.items():
            self._sums[_SUMS.index(name)] += value

    def difference(self, old: Tensor, behaviour: Tensor) -> None:
        """How far the trainer's log-probs at the step's start are from the engine's."""
        apart = (old - behaviour).abs()
        self.add(diff=apart.sum(), diff_count=len(apart))
        self._diff_max = torch.maximum(self._diff_max, apart.max())

    def reduce(self, config: TrainConfig) -> dict[str, float]:
        """The sums over all ranks by name, and `diff_max`."""
        if config.ranks > 1:
            torch.distributed.all_reduce(self._sums)
            torch.distributed.all_reduce(self._diff_max, torch.distributed.ReduceOp.MAX)
        return dict(zip(_SUMS, self._sums.tolist(), strict=True)) | {"diff_max": float(self._diff_max)}


class RankTrainer:
    """This process's part of the trainer. Every method is a collective: all ranks call it with the same arguments."""

    def __init__(self, config: TrainConfig, rank: int = 0) -> None:
        """Load the model and join the other ranks. Raises TrainError for a model or device that is not there."""
        self.config, self.rank = config, rank
        self.source = check_folder(config.model)
        self.device = ranks.join(config, rank)
        model = load_model(config.model, dtype=config.dtype)
        text = model.config.get_text_config()
        self.vocabulary, self.context = int(text.vocab_size), int(text.max_position_embeddings)
        self.parameters = sum(p.numel() for p in model.parameters())
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if config.lora is not None:
            lora.adapt(model, config.lora, config.seed)
        self.engine = self._initialize(Policy(model))
        self.reference = self._load_reference() if config.kl else None
        self.version = config.version
        self.updates = 0
        self.kl = KLCoefficient(config.kl, config.kl_target)

    def _load_reference(self) -> Policy | lora.Base:
        if self.config.lora is not None:
            return lora.Base(self.engine.module, self.model)
        model = load_model(self.config.model, dtype=self.config.dtype).to(self.device)
        return Policy(model).eval().requires_grad_(False)

    def _initialize(self, policy: Policy) -> Any:
        import deepspeed

        config = self.config
        optimizer = torch.optim.AdamW(parameter_groups(policy, config.weight_decay), lr=config.lr, betas=config.betas)
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed's own bookkeeping; what is accumulated is decided here
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.grad_clip,
            "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
            "bf16": {"enabled": config.dtype == "bfloat16"},
            "data_types": {"grad_accum_dtype": "fp32"},
        }
        return deepspeed.initialize(model=policy, optimizer=optimizer, config=settings, dist_init_required=False)[0]

    @property
    def model(self) -> Any:
        """The `transformers` model inside; under ZeRO-3 its parameters are shards."""
        return self.engine.module.model

    def info(self) -> TrainerInfo:
        return TrainerInfo(
            model=str(self.source),
            version=self.version,
            parameters=self.parameters,
            ranks=self.config.ranks,
            pids=[os.getpid()],
        )

    # ------------------------------------------------------------------------------------------------- the step

    def step(self, batch: TrainBatch) -> StepReport:
        """Learn from one batch. Raises TrainError before anything is changed where the batch cannot be trained."""
        started = time.perf_counter()
        rows = self._rows(batch)
        lengths = [len(row) for row in rows]
        totals = _Totals(self.device)
        penalties = self._look_before(rows, batch.temperature) if self.config.needs_old else {}
        metrics = assign(batch, rows, self.config, penalties)
        if not any(row.counted for row in rows):
            raise TrainError(
                f"step {batch.step}: train correction {self.config.correction} dropped every token; widen "
                f"correction_low {self.config.correction_low} and correction_high {self.config.correction_high}, or "
                "look at logp_diff: does the engine have these weights?"
            )
        norms = [
            self._update(chosen, batch.temperature, totals, first=epoch == 0)
            for epoch, chosen in self._minibatches(rows, batch.step)
        ]
        self.version += 1
        planned = plan(lengths, self.config.ranks, self.config.tokens_per_microbatch)
        sums = totals.reduce(self.config)
        metrics |= self._metrics(sums, norms) | {
            "tokens/trained": float(sum(row.counted for row in rows)),
            "tokens/input": float(sum(lengths)),
            "tokens/padding_fraction": padding_fraction(lengths, planned),
            "time/train_s": time.perf_counter() - started,
        }
        if self.config.kl:
            observed = (
                sum(penalties.values()) / self.kl.value / sum(len(r.targets) for r in rows) if penalties else None
            )
            metrics["loss/kl"] = metrics["loss/kl"] if observed is None else observed
            self.kl.update(metrics["loss/kl"])
        return StepReport(version=self.version, metrics=metrics)

    def _rows(self, batch: TrainBatch) -> list[Row]:
        """The rows that have something to train, checked; their advantages are yet to come."""
        if not batch.temperature > 0:
            raise TrainError(
                f"a batch's temperature must be over 0 (greedy tokens teach nothing); got {batch.temperature}"
            )
        episodes_of(batch)
        made = (
            make_row(
                sample,
                logprobs=sample.logprobs,
                number=number,
                episode=sample.episode,
                vocabulary=self.vocabulary,
                context=self.context,
            )
            for number, sample in enumerate(batch.samples)
        )
        rows = [row for row in made if row is not None]
        if not rows:
            raise TrainError(f"step {batch.step}: none of {len(batch.samples)} samples has a sampled token to train")
        return rows

    def _minibatches(self, rows: list[Row], step: int) -> Iterator[tuple[int, list[Row]]]:
        """(epoch, rows) of each update: every row once an epoch, dealt by a shuffle that all ranks draw alike."""
        parts = min(self.config.minibatches, len(rows))
        for epoch in range(self.config.epochs):
            order = list(rows)
            if parts > 1:
                random.Random(f"minibatches/{self.config.seed}/{step}/{epoch}").shuffle(order)
            for part in range(parts):
                yield epoch, order[part::parts]

    def _mine(self, rows: list[Row]) -> list[list[Row]]:
        """This rank's micro-batches; as many as every other rank's."""
        packs = plan([len(row) for row in rows], self.config.ranks, self.config.tokens_per_microbatch)[self.rank]
        return [[rows[i] for i in pack] for pack in packs]

    def _look_before(self, rows: list[Row], temperature: float) -> dict[int, float]:
        """What must be known before the first update: every row's old log-probs and what a filter leaves of it.

        Returns what each episode's reward loses for its distance from the reference, where that is taken from rewards.
        """
        for row, old in zip(rows, self._logprobs_of(self.engine, rows, temperature), strict=True):
            row.old = old
            _, kept = self._corrected(old, row.behaviour, torch.zeros(len(old), dtype=torch.int64))
            row.kept = None if bool(kept.all()) else kept
        if self.reference is None or self.config.kl_in == "loss":
            return {}
        penalties: dict[int, float] = {}
        for row, reference in zip(rows, self._logprobs_of(self.reference, rows, temperature), strict=True):
            assert row.old is not None
            kl = float(KL[self.config.kl_estimator](row.old, reference).sum())
            penalties[row.episode] = penalties.get(row.episode, 0.0) + self.kl.value * kl
        return penalties

    def _logprobs_of(self, model: Any, rows: list[Row], temperature: float) -> list[Tensor]:
        """Each row's log-probs under a model, on every rank: a later minibatch may deal a row to another rank."""
        ends = list(accumulate((len(row.targets) for row in rows), initial=0))
        starts = {id(row): start for row, start in zip(rows, ends, strict=False)}
        shared = torch.zeros(ends[-1], device=self.device)
        model.eval()
        with torch.no_grad():
            for mine in self._mine(rows):
                micro = collate(mine).to(self.device)
                logp, _ = token_logprobs(model(micro.inputs, micro.index), micro.targets, temperature)
                for row, part in zip(mine, logp.split([len(row.targets) for row in mine] or [1]), strict=False):
                    shared[starts[id(row)] : starts[id(row)] + len(part)] = part
        if self.config.ranks > 1:
            torch.distributed.all_reduce(shared)
        return [shared[starts[id(row)] : starts[id(row)] + len(row.targets)].cpu() for row in rows]

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

    def _update(self, rows: list[Row], temperature: float, totals: _Totals, *, first: bool) -> float:
        """One optimizer update on these rows; returns the gradient's global norm before clipping."""
        config = self.config
        assert config.aggregation is not None
        weights = row_weights(
            [row.counted for row in rows],
            [row.episode for row in rows],
            kind=config.aggregation,
            length=config.aggregation_length,
        )
        for row, weight in zip(rows, weights, strict=True):
            row.weight = weight
        self.engine.train()
        packs = self._mine(rows)
        finite = True
        for i, mine in enumerate(packs):
            self.engine.set_gradient_accumulation_boundary(i == len(packs) - 1)
            loss = self._loss(collate(mine).to(self.device), temperature, totals, first=first)
            finite = finite and bool(torch.isfinite(loss.detach()))
            # DeepSpeed averages gradients over ranks; the denominator is global already, so the sum is wanted.
            self.engine.backward(loss * self.config.ranks, scale_wrt_gas=False)
        if not self._all(finite):
            raise TrainError(
                "the loss is not a finite number, the weights were left as they are; "
                "continue from the last checkpoint with a lower train lr"
            )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.updates)
        # At stage 0 in float32 DeepSpeed clips without telling the norm.
        norm = self._plain_norm() if self.config.zero_stage == 0 and self.config.dtype == "float32" else None
        self.engine.step()
        self.updates += 1
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def _loss(self, micro: MicroBatch, temperature: float, totals: _Totals, *, first: bool) -> Tensor:
        """This micro-batch's share of the loss; its tokens go into `totals`."""
        config = self.config
        logits = self.engine(micro.inputs, micro.index)
        if micro.empty:
            return (logits * 0.0).sum()
        logp, entropy = token_logprobs(logits, micro.targets, temperature, entropy_gradient=config.entropy > 0)
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
        if self.reference is not None and config.kl_in == "loss":
            with torch.no_grad():
                ref, _ = token_logprobs(self.reference(micro.inputs, micro.index), micro.targets, temperature)
            kl = KL[config.kl_estimator](logp, ref)
            per_token = per_token + self.kl.value * kl
            totals.add(kl=kl.detach()[counts].sum())
        if config.entropy:
            per_token = per_token - config.entropy * entropy
        if first:
            totals.difference(old, micro.behaviour)
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

    def _plain_norm(self) -> float:
        squares = [
            p.grad.detach().float().square().sum() for p in self.engine.module.parameters() if p.grad is not None
        ]
        return math.sqrt(float(torch.stack(squares).sum()))

    def _all(self, good: bool) -> bool:
        """Whether it is so on every rank."""
        if self.config.ranks == 1:
            return good
        flag = torch.tensor(float(good), device=self.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag)

    def _metrics(self, sums: dict[str, float], norms: list[float]) -> dict[str, float]:
        per_token = {name: sums[name] / sums["tokens"] for name in _SUMS if not name.startswith("diff")}
        seen = sums["tokens"] + sums["dropped"]
        return {
            "loss/policy": per_token["policy"],
            "loss/entropy": per_token["entropy"],
            "loss/kl": per_token["kl"],
            "loss/clip_fraction": per_token["clip"],
            "loss/ratio_mean": per_token["ratio"],
            "loss/approx_kl": per_token["approx_kl"],
            "loss/kl_coefficient": self.kl.value,
            "loss/correction_mean": per_token["correction"],
            "loss/correction_bounded_fraction": per_token["bounded"],
            "loss/correction_dropped_fraction": sums["dropped"] / seen,
            "loss/grad_norm": sum(norms) / len(norms),
            "loss/lr": self.engine.optimizer.param_groups[0]["lr"],
            "loss/updates": float(len(norms)),
            "logp_diff/mean_abs": sums["diff"] / sums["diff_count"],
            "logp_diff/max_abs": sums["diff_max"],
        }

    # ------------------------------------------------------------------------------------------------- weights

    def logprobs(self, ids: list[int]) -> list[float]:
        """log p(ids[i] | ids[:i]) for i = 1 … len-1, at temperature 1."""

        class Whole:
            def __init__(self) -> None:
                self.ids, self.mask = ids, [False] + [True] * (len(ids) - 1)

        row = make_row(Whole(), vocabulary=self.vocabulary, context=self.context)
        if row is None:
            raise TrainError(f"log-probs need 2 tokens or more; got {len(ids)}")
        micro = collate([row]).to(self.device)
        self.engine.eval()
        with torch.no_grad():
            return token_logprobs(self.engine(micro.inputs, micro.index), micro.targets)[0].tolist()

    def weights(self) -> Walk:
        """Every weight on rank 0, with adapters merged; none on the others. Every rank walks."""
        return self._walk(weights(self.model))

    def adapter(self) -> Walk:
        """The adapter alone, likewise."""
        return self._walk(adapter(self.model))

    def _walk(self, pieces: list[Piece]) -> Walk:
        return Walk(pieces, sharded=self.config.zero_stage == 3, keep=self.rank == 0)

    def export(self, path: str) -> Exported | None:
        """Rank 0 writes the Hugging Face folder and says what it wrote; None on the others."""
        walk = self.weights()
        if self.rank == 0:
            return export(path, self.model, walk, self.source, self.version)
        walk.finish()
        return None

    def held(self, *, writing: bool = False) -> list[Shard]:
        """What this rank's optimizer holds; to write, each number by one rank."""
        if writing and self.config.zero_stage == 0 and self.rank:
            return []  # rank 0 holds the same
        return shards(self.engine, self.config.zero_stage, self.rank)

    def save(self, path: str) -> None:
        checkpoint.save(self, Path(path))

    def load(self, path: str) -> int:
        checkpoint.load(self, Path(path))
        return self.version
