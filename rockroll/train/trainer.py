"""One rank of the trainer: a batch in, one weight version later out, by DeepSpeed.

In: the whole batch, the same on every rank. Out: the same report on every rank. Each rank takes its share of the rows
by the same arithmetic, so denominators are global without a message. Leaves processes and wires to server.py.

A step, read from the top: rows (cut, checked) → what the objective must know beforehand → for every epoch and
minibatch: weights, micro-batches, forward and backward each, one optimizer update → metrics summed over ranks. What is
minimised is the objective's (objective.py).
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rockroll.errors import TrainError
from rockroll.train import checkpoint, ranks, worst_case
from rockroll.train.api import Exported, StepReport, TrainBatch, TrainerInfo, WorstCase
from rockroll.train.batch import MicroBatch, Row, collate, make_row
from rockroll.train.config import TrainConfig
from rockroll.train.export import Piece, Walk, adapter, export, weights
from rockroll.train.loss import token_logprobs
from rockroll.train.objective import counted
from rockroll.train.objectives import objective_of
from rockroll.train.objectives.value import ValueObjective, values_of
from rockroll.train.policy import Policy, check_folder, parameter_groups
from rockroll.train.shards import Shard, shards
from rockroll.train.share import Share
from rockroll.train.spans import spans


class RankTrainer:
    """This process's part of the trainer. Every method is a collective: all ranks call it with the same arguments."""

    def __init__(self, config: TrainConfig, rank: int = 0) -> None:
        """Load the model and join the other ranks. Raises TrainError for a model or device that is not there."""
        self.config, self.rank = config, rank
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses
            torch.use_deterministic_algorithms(True, warn_only=config.device != "cpu" and torch.cuda.is_available())
        self.source = check_folder(config.model)
        self.device = ranks.join(config, rank)
        kind = objective_of(config)
        self.share = Share(config, rank, self.device, together=kind.together)
        self.objective = kind(config, self.share)
        policy = self.objective.load()
        model: Any = policy.model
        text = model.config.get_text_config()
        self.vocabulary, self.context = int(text.vocab_size), int(text.max_position_embeddings)
        self.parameters = sum(p.numel() for p in model.parameters())
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.engine = self._initialize(policy)
        self.version = config.version
        self.updates = 0

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
            context=self.context,
        )

    # ------------------------------------------------------------------------------------------------- the step

    def worst_case(self, longest: int) -> WorstCase:
        """A step of the longest batch that changes nothing: see worst_case.py."""
        return worst_case.run(self, longest)

    def step(self, batch: TrainBatch) -> StepReport:
        """Learn from one batch. Raises TrainError before anything is changed where the batch cannot be trained."""
        started = time.perf_counter()
        rows = self._rows(batch)
        if not batch.learn:
            self.version += 1
            return StepReport(version=self.version, metrics={"time/train_s": time.perf_counter() - started})
        metrics = self.objective.begin(batch, rows, self.engine)
        updates = list(self._minibatches(rows, batch.step))
        norms = [self._update(chosen, first=epoch == 0) for epoch, chosen in updates]
        self.version += 1
        metrics |= self.objective.end() | {
            "loss/grad_norm": sum(norms) / len(norms),
            "loss/lr": self.engine.optimizer.param_groups[0]["lr"],
            "loss/updates": float(len(norms)),
            "tokens/trained": float(counted(rows)),
            "tokens/input": float(sum(map(len, rows))),
            "tokens/padding_fraction": self.share.padding_fraction([chosen for _, chosen in updates]),
            "time/train_s": time.perf_counter() - started,
        }
        told = spans(rows, len(batch.samples), batch.spans) if batch.spans and self.rank == 0 else []
        return StepReport(version=self.version, metrics=metrics, advantages=told)

    def values(self, batch: TrainBatch) -> list[list[float]]:
        """A critic's value of each trained token, sample by sample. Raises TrainError where this is no critic."""
        if not isinstance(self.objective, ValueObjective):
            raise TrainError(f"values are a critic's to tell; this trainer's objective is {self.config.objective}")
        return values_of(self.share, self.engine, batch, self._rows(batch))

    def measure(self, batch: TrainBatch) -> dict[str, float]:
        """The objective's metrics on a batch, with the weights as they are and nothing learnt."""
        state = self.objective.state()
        rows = self._rows(batch)
        metrics = self.objective.begin(batch, rows, self.engine)
        self.objective.weigh(rows)
        self.engine.eval()
        with torch.no_grad():
            for mine in self.share.micro_batches(rows):
                self._loss(collate(mine).to(self.device), first=True)
        metrics |= self.objective.end()
        self.objective.restore(state)
        return metrics

    def _rows(self, batch: TrainBatch) -> list[Row]:
        """The rows that have something to train, checked; what the objective knows of them is yet to come."""
        if not batch.temperature > 0:
            raise TrainError(
                f"a batch's temperature must be over 0 (greedy tokens teach nothing); got {batch.temperature}"
            )
        self.objective.check(batch)
        made = (
            make_row(
                sample,
                logprobs=sample.logprobs or None,
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
        units = self.share.units(rows)
        parts = min(self.config.minibatches, len(units))
        for epoch in range(self.config.epochs):
            order = list(units)
            if parts > 1:
                random.Random(f"minibatches/{self.config.seed}/{step}/{epoch}").shuffle(order)
            for part in range(parts):
                yield epoch, list(chain.from_iterable(order[part::parts]))

    def _update(self, rows: list[Row], *, first: bool) -> float:
        """One optimizer update on these rows; returns the gradient's global norm before clipping."""
        self.objective.weigh(rows)
        self.engine.train()
        packs = self.share.micro_batches(rows)
        finite = True
        for i, mine in enumerate(packs):
            self.engine.set_gradient_accumulation_boundary(i == len(packs) - 1)
            loss = self._loss(collate(mine).to(self.device), first=first)
            finite = finite and bool(torch.isfinite(loss.detach()))
            # DeepSpeed averages gradients over ranks; the denominator is global already, so the sum is wanted.
            self.engine.backward(loss * self.config.ranks, scale_wrt_gas=False)
        if not self.share.all(finite):
            raise TrainError(
                "the loss is not a finite number, the weights were left as they are; "
                "continue from the last checkpoint with a lower train lr"
            )
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(self.updates)
        # At stage 0 in float32 DeepSpeed clips without telling the norm.
        norm = self._plain_norm() if self.config.zero_stage == 0 and self.config.dtype == "float32" else None
        self._check_norm(norm)
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm()) if norm is None else norm
        self._check_norm(norm)
        self.updates += 1
        return norm

    def _check_norm(self, norm: float | None) -> None:
        """A finite loss may have a gradient that is not. DeepSpeed then leaves the update out with a warning, or, at
        stage 3 in float32, makes weights of it that are no numbers; either way the next checkpoint must not be written.
        The same on every rank."""
        if norm is not None and not math.isfinite(norm):
            raise TrainError(
                f"the gradient's norm is {norm}, not a finite number; "
                "continue from the last checkpoint with a lower train lr"
            )

    def _loss(self, micro: MicroBatch, *, first: bool) -> Tensor:
        """This micro-batch's share of the loss; a stand-in for a missing one runs, as collectives need, for nothing."""
        outputs = self.engine(micro.inputs, micro.index)
        return (outputs * 0.0).sum() if micro.empty else self.objective.loss(outputs, micro, first=first)

    def _plain_norm(self) -> float:
        squares = [
            p.grad.detach().float().square().sum() for p in self.engine.module.parameters() if p.grad is not None
        ]
        return math.sqrt(float(torch.stack(squares).sum()))

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
