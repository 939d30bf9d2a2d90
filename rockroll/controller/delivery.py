"""Weights from the trainer to the engine, proved.

In: a trainer and an engine. Out: the new version in the engine, and by how much the two disagree about one fixed
prompt; CanaryError when that is more than the recipe allows. Leaves the form of the hand-over to train/ and engine/.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

from rockroll.controller.config import CanaryConfig
from rockroll.engine.api import Engine
from rockroll.engine.pool import EnginePool
from rockroll.errors import CanaryError
from rockroll.train.api import Trainer


async def deliver(trainer: Trainer, engine: Engine, folder: Path) -> int:
    """Hands the trainer's weights to the engine; returns their version.

    Raises CanaryError when the engine's proof (version, number of tensors, digest) is not that of what was exported.
    """
    exported = await trainer.export(str(folder))
    loaded = await engine.load(str(folder), exported.version, exported.digest)
    sent = (exported.version, exported.tensors, exported.digest)
    got = (loaded.version, loaded.tensors, loaded.digest)
    if sent != got:
        raise CanaryError(
            f"the engine loaded other weights than the trainer exported: (version, tensors, digest) {got} after {sent}"
        )
    return exported.version


async def canary(trainer: Trainer, engine: Engine, ids: list[int], config: CanaryConfig) -> float:
    """Largest |difference| of the two log-probs of any token of `ids` given those before it, of any replica's.

    Raises CanaryError, naming token and values, when it is above `config.max_abs_dlogp`.
    """
    theirs, each = await asyncio.gather(trainer.logprobs(ids), _of_each(engine, ids))
    return max(_compared(theirs, ours, name, ids, config) for name, ours in each.items())


async def _of_each(engine: Engine, ids: list[int]) -> dict[str, list[float]]:
    if isinstance(engine, EnginePool):
        return await engine.logprobs_of_each(ids)
    return {"the engine": await engine.logprobs(ids)}


def _compared(theirs: list[float], ours: list[float], name: str, ids: list[int], config: CanaryConfig) -> float:
    differences = [abs(a - b) for a, b in zip(theirs, ours, strict=True)]
    # nan compares as neither larger nor smaller, and would hide behind any number
    worst = max(range(len(ours)), key=lambda i: math.inf if math.isnan(differences[i]) else differences[i])
    difference = differences[worst]
    if not difference <= config.max_abs_dlogp:
        raise CanaryError(
            f"trainer and {name} disagree on the canary prompt: log-prob of token {worst + 1} (id {ids[worst + 1]}) is "
            f"{theirs[worst]:.6f} in the trainer and {ours[worst]:.6f} in {name}, {difference:.6f} apart; the "
            f"recipe allows canary.max_abs_dlogp {config.max_abs_dlogp}. The weights did not arrive, or the two "
            f"compute with different precision"
        )
    return difference
