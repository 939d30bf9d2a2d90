"""One rank of the trainer: a batch in, one weight version later out, by DeepSpeed.

In: the whole batch, the same on every rank. Out: the same report on every rank. Each rank takes its share of the rows
by the same arithmetic, so denominators are global without a message. Leaves processes and wires to server.py.

A step, read from the top: rows (advantages, cut, checked) → for every epoch and minibatch: plan micro-batches,
forward and backward each, one optimizer update → metrics summed over ranks.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rockroll.errors import TrainError
from rockroll.train import checkpoint, ranks
from rockroll.train.advantages import group_advantages
from rockroll.train.api import Exported, StepReport, TrainBatch, TrainerInfo
from rockroll.train.batch import MicroBatch, Row, collate, make_row, padding_fraction, plan
from rockroll.train.config import TrainConfig
from rockroll.train.export import export, gather
from rockroll.train.loss import importance_weights, k3, policy_loss, token_logprobs
from rockroll.train.policy import Policy, check_folder, load_model, parameter_groups

_SUMS = (
    "tokens",
    "policy",
    "entropy",
    "kl",
    "clip",
    "ratio",
    "approx_kl",
    "importance",
    "capped",
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
        self.reference = self._load_reference() if config.kl else None
        self.engine = self._initialize(Policy(model))
        self.version = config.version
        self.updates = 0

    def _load_reference(self) -> Policy:
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
        rows, metrics = self._rows(batch)
        lengths = [len(row) for row in rows]
        totals = _Totals(self.device)
        if self.config.epochs * self.config.minibatches > 1:
            self._remember_old(rows, batch.temperature)
        norms = [
            self._update(chosen, batch.temperature, totals, first=epoch == 0)
            for epoch, chosen in self._minibatches(rows, batch.step)
        ]
        self.version += 1
        planned = plan(lengths, self.config.ranks, self.config.tokens_per_microbatch)
        metrics |= self._metrics(totals.reduce(self.config), norms) | {
            "tokens/trained": float(sum(len(row.targets) for row in rows)),
            "tokens/input": float(sum(lengths)),
            "tokens/padding_fraction": padding_fraction(lengths, planned),
            "time/train_s": time.perf_counter() - started,
        }
        return StepReport(version=self.version, metrics=metrics)

    def _rows(self, batch: TrainBatch) -> tuple[list[Row], dict[str, float]]:
        """Rows with their episode's advantage, and what is to say about rewards and advantages."""
        if not batch.temperature > 0:
            raise TrainError(
                f"a batch's temperature must be over 0 (greedy tokens teach nothing); got {batch.temperature}"
            )
        episodes: dict[int, tuple[int, float]] = {}
        for sample in batch.samples:
            if not math.isfinite(sample.reward):
                raise TrainError(f"a reward must be a finite number; episode {sample.episode} has {sample.reward}")
            if episodes.setdefault(sample.episode, (sample.group, sample.reward)) != (sample.group, sample.reward):
                raise TrainError(
                    f"samples of one episode share its group and reward; episode {sample.episode} has "
                    f"{episodes[sample.episode]} and {(sample.group, sample.reward)}"
                )
        groups, rewards = [g for g, _ in episodes.values()], [r for _, r in episodes.values()]
        try:
            advantages = group_advantages(
                torch.tensor(rewards, dtype=torch.float64),
                torch.tensor(groups, dtype=torch.int64),
                normalise=self.config.std_normalisation,
            ).tolist()
        except ValueError as error:
            raise TrainError(f"step {batch.step}: {error}") from error
        of_episode = dict(zip(episodes, advantages, strict=True))
        made = (
            make_row(
                sample,
                logprobs=sample.logprobs,
                advantage=of_episode[sample.episode],
                vocabulary=self.vocabulary,
                context=self.context,
            )
            for sample in batch.samples
        )
        rows = [row for row in made if row is not None]
        if not rows:
            raise TrainError(f"step {batch.step}: none of {len(batch.samples)} samples has a sampled token to train")
        varied = {g for g, a in zip(groups, advantages, strict=True) if a != 0}
        return rows, {
            "advantage/mean": sum(advantages) / len(advantages),
            "advantage/abs_mean": sum(map(abs, advantages)) / len(advantages),
            "advantage/max": max(advantages),
            "advantage/min": min(advantages),
            "advantage/zero_groups": 1 - len(varied) / len(set(groups)),
        }

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

    def _remember_old(self, rows: list[Row], temperature: float) -> None:
        """Each of this batch's rows gets the log-probs of the policy before the first update: on every rank.

        A later minibatch may deal a row to another rank, so all ranks need them all.
        """
        shared = torch.zeros(sum(len(row.targets) for row in rows), device=self.device)
        starts: dict[int, int] = {}
        at = 0
        for row in rows:
            starts[id(row)] = at
            at += len(row.targets)
        self.engine.eval()
        with torch.no_grad():
            for mine in self._mine(rows):
                micro = collate(mine).to(self.device)
                logp, _ = token_logprobs(self.engine(micro.inputs, micro.index), micro.targets, temperature)
                for row, part in zip(mine, logp.split([len(row.targets) for row in mine] or [1]), strict=False):
                    shared[starts[id(row)] : starts[id(row)] + len(part)] = part
        if self.config.ranks > 1:
            torch.distributed.all_reduce(shared)
        for row in rows:
            row.old = shared[starts[id(row)] : starts[id(row)] + len(row.targets)].cpu()

    def _update(self, rows: list[Row], temperature: float, totals: _Totals, *, first: bool) -> float:
        """One optimizer update on these rows; returns the gradient's global norm before clipping."""
        denominator = sum(len(row.targets) for row in rows)
        self.engine.train()
        packs = self._mine(rows)
        finite = True
        for i, mine in enumerate(packs):
            self.engine.set_gradient_accumulation_boundary(i == len(packs) - 1)
            loss = self._loss(collate(mine).to(self.device), temperature, denominator, totals, first=first)
            finite = finite and bool(torch.isfinite(loss.detach()))
            # DeepSpeed averages gradients over ranks; the denominator is global already, so the sum is wanted.
            self.engine.backward(loss * self.config.ranks, scale_wrt_gas=False)
        if not self._all(finite):
            raise TrainError(
                "the loss is not a finite number, the weights were left as they are; "
                "continue from the last checkpoint with a lower train lr"
            )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.learning_rate
        # At stage 0 in float32 DeepSpeed clips without telling the norm.
        norm = self._plain_norm() if self.config.zero_stage == 0 and self.config.dtype == "float32" else None
        self.engine.step()
        self.updates += 1
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    def _loss(self, micro: MicroBatch, temperature: float, denominator: int, totals: _Totals, *, first: bool) -> Tensor:
        """This micro-batch's share of the loss; its tokens go into `totals`."""
        config = self.config
        logits = self.engine(micro.inputs, micro.index)
        if micro.empty:
            return (logits * 0.0).sum()
        logp, entropy = token_logprobs(logits, micro.targets, temperature, entropy_gradient=config.entropy > 0)
        old = logp.detach() if micro.old is None else micro.old
        importance = importance_weights(old, micro.behaviour, config.importance_cap)
        policy, clipped = policy_loss(
            logp, old, micro.advantages, importance, clip_low=config.clip_low, clip_high=config.clip_high
        )
        per_token = policy
        if self.reference is not None:
            with torch.no_grad():
                ref, _ = token_logprobs(self.reference(micro.inputs, micro.index), micro.targets, temperature)
            kl = k3(logp, ref)
            per_token = per_token + config.kl * kl
            totals.add(kl=kl.detach().sum())
        if config.entropy:
            per_token = per_token - config.entropy * entropy
        now = logp.detach()
        if first:
            totals.difference(old, micro.behaviour)
        totals.add(
            tokens=len(now),
            policy=policy.detach().sum(),
            entropy=entropy.detach().sum(),
            clip=clipped.sum(),
            ratio=torch.exp(now - old).sum(),
            approx_kl=k3(old, now).sum(),
            importance=importance.sum(),
            capped=(importance >= config.importance_cap).sum() if config.importance_cap else 0.0,
        )
        return per_token.sum() / denominator

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        return self.config.lr * min(1.0, (self.updates + 1) / max(1, self.config.warmup_steps))

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
        return {
            "loss/policy": per_token["policy"],
            "loss/entropy": per_token["entropy"],
            "loss/kl": per_token["kl"],
            "loss/clip_fraction": per_token["clip"],
            "loss/ratio_mean": per_token["ratio"],
            "loss/approx_kl": per_token["approx_kl"],
            "loss/importance_mean": per_token["importance"],
            "loss/importance_capped_fraction": per_token["capped"],
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

    def tensors(self) -> dict[str, Tensor]:
        """Every weight on rank 0, none on the others."""
        return gather(self.model, sharded=self.config.zero_stage == 3, keep=self.rank == 0)

    def export(self, path: str) -> Exported | None:
        """Rank 0 writes the Hugging Face folder and says what it wrote; None on the others."""
        tensors = self.tensors()
        return export(path, self.model, tensors, self.source, self.version) if self.rank == 0 else None

    def save(self, path: str) -> None:
        checkpoint.save(self, Path(path))

    def load(self, path: str) -> int:
        checkpoint.load(self, Path(path))
        return self.version
