"""One rank that computes one step's gradient and stops before the update: `gradient_worker.py CONFIG RANK OUT`.

CONFIG: {"train": TrainConfig, "batch": TrainBatch} as JSON. OUT: the gradient before clipping, by rank 0.
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from rockroll import child
from rockroll.train.api import TrainBatch
from rockroll.train.config import TrainConfig
from rockroll.train.trainer import RankTrainer


class Work(msgspec.Struct):
    train: TrainConfig
    batch: TrainBatch


class _Seen(Exception):
    """The step went far enough."""


def gradient(trainer: RankTrainer, batch: TrainBatch) -> dict[str, Tensor]:
    """The gradient by parameter name, where the optimizer would take it from; the weights stay."""
    from deepspeed.utils import safe_get_full_grad

    found: dict[str, Tensor] = {}

    def look(*_: Any) -> None:
        for name, p in trainer.model.named_parameters():
            if not p.requires_grad:
                continue
            grad = p.grad if trainer.config.zero_stage == 0 else safe_get_full_grad(p)
            assert grad is not None, name
            found[name] = grad.detach().float().clone()
        raise _Seen

    trainer.engine.step = look
    with suppress(_Seen):
        trainer.step(batch)
    del trainer.engine.step
    trainer.engine.zero_grad()
    return found


if __name__ == "__main__":
    work = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Work)
    rank = int(sys.argv[2])
    found = gradient(RankTrainer(work.train, rank), work.batch)
    if rank == 0:
        torch.save(found, sys.argv[3])
    child.leave(0)  # as a rank of a run does: gloo's threads abort a process that ends in order, now and then
