"""What DeepSpeed's optimizer on this rank knows of each trained parameter: which part of it, and where that lies.

In: a DeepSpeed engine at any ZeRO stage. Out: `Shard`s, views of its live float32 weights and Adam moments, by name and
place in the parameter, so that what one layout wrote any other reads. Leaves files and collectives to checkpoint.py.

    stage 0     every rank holds everything; the parameter is the float32 weight
    stage 1, 2  parameters are laid end to end and cut into one stretch a rank: a rank has pieces at the cuts
    stage 3     every parameter is cut into one stretch a rank, the last one padded
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Shard:
    """`parameter.view(-1)[start:start + length]`, as this rank's optimizer holds it: `flat[offset:offset + length]`."""

    name: str
    parameter: Any
    start: int
    length: int
    flat: Tensor
    """The float32 tensor that torch's optimizer updates, of one or of many parameters."""
    offset: int

    def of(self, like_flat: Tensor) -> Tensor:
        """[length] this shard's view of `flat`, or of a moment of its shape."""
        return like_flat.detach().view(-1)[self.offset : self.offset + self.length]


def shards(engine: Any, stage: int, rank: int) -> list[Shard]:
    """This rank's shards, in the order of the model's parameters."""
    find = {0: _whole, 1: _stretch, 2: _stretch, 3: _cut}[stage]
    found = (find(engine, name, p, rank) for name, p in trained(engine))
    return [shard for shard in found if shard is not None and shard.length]


def trained(engine: Any) -> Iterator[tuple[str, Any]]:
    """(name, parameter) of what is trained, tied ones once."""
    return ((name, p) for name, p in engine.module.model.named_parameters() if p.requires_grad)


def shape_of(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _whole(_engine: Any, name: str, p: Any, _rank: int) -> Shard:
    return Shard(name, p, 0, p.numel(), p, 0)


def _stretch(engine: Any, name: str, p: Any, _rank: int) -> Shard | None:
    mapping, optimizer = p._hp_mapping, engine.optimizer
    if mapping is None:
        return None  # all of it is other ranks'
    flats = getattr(optimizer, "fp32_groups_flat_partition", None)  # bfloat16 at stage 1 has an optimizer of its own
    flat = (optimizer.single_partition_of_fp32_groups if flats is None else flats)[mapping.param_group_index]
    mine, held = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Shard(name, p, mine.start, mine.numel, flat, held.start)


def _cut(engine: Any, name: str, p: Any, rank: int) -> Shard:
    optimizer = engine.optimizer
    group, offset, width = optimizer.grad_position[optimizer.get_param_id(p)]
    start = rank * width
    length = min(width, max(0, p.ds_numel - start))
    return Shard(name, p, start, length, optimizer.fp32_partitioned_groups_flat[group], offset)


def moments(engine: Any, shard: Shard) -> dict[str, Tensor]:
    """Adam's moments of a shard by name, live; none before the first update."""
    state = engine.basic_optimizer.state.get(shard.flat, {})
    return {key: shard.of(state[key]) for key in MOMENTS if key in state}


def begin(engine: Any, held: list[Shard], updates: int) -> None:
    """Make the optimizer's state as after so many updates, with moments that are yet to be filled in."""
    for shard in held:
        state = engine.basic_optimizer.state[shard.flat]
        for key in MOMENTS:
            if key not in state:
                state[key] = torch.zeros_like(shard.flat)
        state["step"] = torch.tensor(float(updates))  # on the CPU, as torch's own


def refresh(engine: Any, stage: int) -> None:
    """After the shards' weights were changed at stage 3: small weights that DeepSpeed keeps whole are whole again."""
    if stage == 3 and (small := engine.optimizer.persistent_parameters):
        small[0].partition(small)
        small[0].all_gather(small)
