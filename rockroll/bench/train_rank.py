"""One rank of `rockroll bench train`: `python -m rockroll.bench.train_rank FILE RANK`.

In: a Work as JSON. Out: a Measured as JSON, by rank 0, on stdout. Leaves starting the ranks to train.py.

Both loops train the same model on the same micro-batches, a step of one after a step of the other. The bare one is what
is left when everything is taken away that is not DeepSpeed's: the tensors lie ready, nothing is checked or counted,
the loss is the clipped one and no more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.nn.functional import cross_entropy

from rockroll.bench.train_load import heavy_tailed_batch
from rockroll.train import ranks
from rockroll.train.aggregate import row_weights
from rockroll.train.api import TrainBatch
from rockroll.train.batch import MicroBatch, Row, collate, make_row, plan
from rockroll.train.config import TrainConfig
from rockroll.train.credit import assign
from rockroll.train.policy import Policy, load_model, parameter_groups
from rockroll.train.trainer import RankTrainer


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured."""

    train: TrainConfig
    episodes: int
    steps: int
    """Of each loop, after one to warm up."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each step, by the clock and of this process's CPU time; rank 0's."""

    ours: list[tuple[float, float]]
    bare: list[tuple[float, float]]
    tokens: list[int]
    """Of each step: input tokens on all ranks, without padding."""
    lengths: list[int]
    """Rows of the first step."""
    losses: list[tuple[float, float]]
    """Of each step: the mean surrogate of ours and of the bare loop, to show that they do the same work."""


class BareLoop:
    """A DeepSpeed engine on a model of its own, with the trainer's settings."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        import deepspeed

        policy = Policy(load_model(config.model, dtype=config.dtype))
        optimizer = torch.optim.AdamW(parameter_groups(policy, config.weight_decay), lr=config.lr, betas=config.betas)
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.grad_clip,
            "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
            "bf16": {"enabled": config.dtype == "bfloat16"},
            "data_types": {"grad_accum_dtype": "fp32"},
        }
        self.config, self.device = config, device
        self.engine: Any = deepspeed.initialize(
            model=policy, optimizer=optimizer, config=settings, dist_init_required=False
        )[0]

    def step(self, micros: list[MicroBatch]) -> float:
        """One update; returns this rank's share of the loss."""
        config, total = self.config, torch.zeros((), device=self.device)
        self.engine.train()
        for i, micro in enumerate(micros):
            self.engine.set_gradient_accumulation_boundary(i == len(micros) - 1)
            logits = self.engine(micro.inputs, micro.index)
            logp = -cross_entropy(logits.float(), micro.targets, reduction="none")
            ratio = torch.exp(logp - logp.detach())
            assert config.clip_low is not None and config.clip_high is not None
            bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
            per_token = -torch.minimum(ratio * micro.advantages, bounded * micro.advantages)
            loss = (per_token * micro.weights).sum()
            self.engine.backward(loss * config.ranks, scale_wrt_gas=False)
            total += loss.detach()
        self.engine.step()
        return float(total)


def packed(batch: TrainBatch, trainer: RankTrainer) -> tuple[list[int], list[MicroBatch]]:
    """(lengths of all rows, this rank's micro-batches), packed and weighed as the trainer does."""
    config = trainer.config
    made = [
        make_row(
            sample,
            logprobs=sample.logprobs,
            number=number,
            episode=sample.episode,
            vocabulary=trainer.vocabulary,
            context=trainer.context,
        )
        for number, sample in enumerate(batch.samples)
    ]
    rows: list[Row] = [row for row in made if row is not None]
    assign(batch, rows, config)
    assert config.aggregation is not None
    weights = row_weights([row.counted for row in rows], [row.episode for row in rows], kind=config.aggregation)
    for row, weight in zip(rows, weights, strict=True):
        row.weight = weight
    lengths = [len(row) for row in rows]
    mine = plan(lengths, config.ranks, config.tokens_per_microbatch)[trainer.rank]
    return lengths, [collate([rows[i] for i in chosen]).to(trainer.device) for chosen in mine]


def measure(work: Work, rank: int) -> Measured:
    """Both loops, step by step. Every rank calls."""
    trainer = RankTrainer(work.train, rank)
    bare = BareLoop(work.train, trainer.device)

    def timed(step: Callable[[], float]) -> tuple[float, float, float]:
        ranks.barrier(work.train)
        _synchronize(trainer.device)
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        _synchronize(trainer.device)
        return time.perf_counter() - wall, time.process_time() - cpu, loss

    ours, plain, tokens, losses, lengths = [], [], [], [], []
    for step in range(1 + work.steps):
        batch = heavy_tailed_batch(
            step,
            work.episodes,
            context=trainer.context,
            answer=max(8, trainer.context // 32),
            vocabulary=trainer.vocabulary,
            seed=work.train.seed,
        )
        rows, micros = packed(batch, trainer)
        lengths = lengths or rows
        steps: dict[str, Callable[[], float]] = {
            "ours": lambda batch=batch: trainer.step(batch).metrics["loss/policy"],
            "bare": lambda micros=micros: bare.step(micros),
        }
        names = ["ours", "bare"] if step % 2 else ["bare", "ours"]  # neither always finds the other's warm caches
        took = {name: timed(steps[name]) for name in names}
        if step:
            ours.append(took["ours"][:2])
            plain.append(took["bare"][:2])
            tokens.append(sum(rows))
            losses.append((took["ours"][2], took["bare"][2]))
    return Measured(ours=ours, bare=plain, tokens=tokens, lengths=lengths, losses=losses)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    found = measure(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Work), int(sys.argv[2]))
    if sys.argv[2] == "0":
        print(msgspec.json.encode(found).decode())
