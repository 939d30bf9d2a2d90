"""bfloat16, gradient checkpointing and schedules change memory, speed and the learning rate, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from rockroll.train.api import TrainBatch
from rockroll.train.batch import collate
from rockroll.train.config import TrainConfig
from rockroll.train.trainer import RankTrainer

from .gradient_worker import gradient
from .test_gradient import assert_same, plain_gradient

Batch = Callable[..., TrainBatch]


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def masters(trainer: RankTrainer) -> dict[str, Tensor]:
    """The float32 weights that the optimizer adds to, by name and place."""
    return {f"{shard.name}@{shard.start}": shard.of(shard.flat).clone() for shard in trainer.held()}


def forwards(trainer: RankTrainer) -> dict[str, Tensor]:
    """The weights of the forward by name."""
    return {name: tensor.clone() for name, tensor in trainer.weights()}


@pytest.mark.parametrize("stage", [1, slow(2), 3])
def test_updates_that_bfloat16_could_not_show_are_not_lost(config: TrainConfig, batch: Batch, stage: int):
    """One update moves a weight by 1e-5. A norm's weight is 1, and the next number that bfloat16 has is 2^-8 away."""
    trainer = RankTrainer(replace(config, dtype="bfloat16", zero_stage=stage, lr=1e-5))  # pyright: ignore[reportArgumentType]
    start, shown = masters(trainer), forwards(trainer)
    for step in range(8):
        trainer.step(batch(step))
    moved = {name: (value - start[name]).abs().max() for name, value in masters(trainer).items()}
    norms = [name for name in moved if "norm" in name]
    assert len(norms) == 5 and all(2e-5 < moved[name] < 9e-5 for name in norms), moved
    assert all(torch.equal(forwards(trainer)[n.split("@")[0]], shown[n.split("@")[0]]) for n in norms)
    whole = forwards(trainer)
    for shard in trainer.held():
        assert torch.equal(
            whole[shard.name].view(-1)[shard.start : shard.start + shard.length],
            shard.of(shard.flat).bfloat16(),
        ), shard.name


@pytest.mark.parametrize("stage", [1, slow(2), slow(3)])
def test_the_gradient_in_bfloat16_is_that_in_float32_but_for_its_rounding(
    config: TrainConfig, batch: Batch, stage: int
):
    given = batch()
    exact = plain_gradient(config, given)
    found = gradient(RankTrainer(replace(config, dtype="bfloat16", zero_stage=stage)), given)  # pyright: ignore[reportArgumentType]
    one, other = (torch.cat([g[name].flatten() for name in sorted(exact)]) for g in (found, exact))
    assert torch.nn.functional.cosine_similarity(one, other, 0) > 0.999
    assert float((one - other).norm() / other.norm()) < 0.05


@pytest.mark.parametrize("stage", [slow(0), slow(1), slow(2), 3])
def test_gradient_checkpointing_leaves_the_gradient_at_every_stage(config: TrainConfig, batch: Batch, stage: int):
    given = batch()
    trainer = RankTrainer(replace(config, gradient_checkpointing=True, zero_stage=stage))  # pyright: ignore[reportArgumentType]
    assert_same(gradient(trainer, given), plain_gradient(config, given))


def test_gradient_checkpointing_keeps_less_for_the_backward(config: TrainConfig, batch: Batch):
    def kept(trainer: RankTrainer) -> int:
        seen: dict[int, int] = {}
        weights = {p.untyped_storage().data_ptr() for p in trainer.engine.module.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        micro = collate(trainer.share.micro_batches(trainer._rows(batch()))[0])
        trainer.engine.train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = trainer.engine(micro.inputs, micro.index)
        assert outputs.requires_grad
        return sum(seen.values())

    whole, less = (kept(RankTrainer(replace(config, gradient_checkpointing=on))) for on in (False, True))
    assert less < whole / 2, (less, whole)


@pytest.mark.parametrize("stage", [0, slow(1), 2, slow(3)])
def test_the_optimizer_of_every_stage_takes_the_schedules_learning_rate(config: TrainConfig, batch: Batch, stage: int):
    """Linear to 0 within two updates: the first moves by lr, the second by half of it at most, the third not at all."""
    config = replace(config, schedule="linear", schedule_updates=2, zero_stage=stage)  # pyright: ignore[reportArgumentType]
    trainer = RankTrainer(config)
    at = [masters(trainer)]
    for step in range(3):
        trainer.step(batch(step))
        at.append(masters(trainer))
    moves = [max(float((b[n] - a[n]).abs().max()) for n in a) for a, b in pairwise(at)]
    assert moves[0] == pytest.approx(1e-2, rel=0.02) and 1e-3 < moves[1] < 5.2e-3 and moves[2] == 0.0
