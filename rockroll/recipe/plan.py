"""What a recipe would do, told without starting anything.

In: a RunConfig. Out: rows of (part, where, what) for `rockroll plan`. Leaves doing it to the controller.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from rockroll import units
from rockroll.controller.config import RunConfig
from rockroll.controller.model_path import resolve
from rockroll.recipe.load import dump


@dataclass(frozen=True, kw_only=True)
class Line:
    """One part of the run."""

    part: str
    where: str
    what: str


def plan(config: RunConfig) -> list[Line]:
    """Every process and sandbox of the run, in the order in which they start."""
    model = resolve(config.model)
    cores = os.cpu_count() or 1
    rollout, train, box = config.rollout, config.train, config.sandbox
    batch = rollout.groups * rollout.episodes
    kind = f"{config.task.env}, {'stepped by an agent program' if config.agent else 'stepped by rockroll'}"
    lines = [
        Line(part="controller", where="this process", what=f"{config.steps} steps, seed {config.seed}; {kind}"),
        Line(
            part="engine",
            where="one process, this machine",
            what=f"{config.engine.kind}, {model}, {config.engine.dtype}, {config.engine.max_batch} requests at once",
        ),
        Line(
            part="trainer",
            where=f"{train.ranks} process{'es' * (train.ranks > 1)}, this machine",
            what=f"DeepSpeed ZeRO {train.zero_stage}, {train.dtype}, lr {train.lr:g}"
            + (f", an adapter of rank {train.lora.rank}" if train.lora else ""),
        ),
    ]
    if config.agent is not None:
        memory = rollout.concurrency * box.memory_bytes
        lines.append(
            Line(
                part="sandboxes",
                where="this machine",
                what=f"{rollout.concurrency} of {box.image_name}, {box.cpus:g} cpus, "
                f"{units.show_size(box.memory_bytes)} each ({units.show_size(memory)} at most), "
                f"network {box.network_text}",
            )
        )
    lines.append(
        Line(
            part="rollout",
            where="controller",
            what=f"{rollout.groups} groups × {rollout.episodes} episodes a step, {batch * config.steps} in all, "
            f"{rollout.concurrency} at once, on {cores} cores",
        )
    )
    if config.eval.episodes:
        when = f"every {config.eval.every} steps, " if config.eval.every else ""
        lines.append(
            Line(
                part="evaluation",
                where="controller",
                what=f"{config.eval.episodes} held-out tasks before, {when}and after; "
                f"temperature {config.eval.temperature:g}",
            )
        )
    return lines


def as_json(config: RunConfig) -> dict[str, Any]:
    """The plan and the resolved recipe as plain values."""
    return {"recipe": dump(config), "parts": [asdict(line) for line in plan(config)]}
