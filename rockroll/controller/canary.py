"""Whether trainer and engines compute the same of fixed prompts: the second line, behind the proof of a delivery.

In: the prompts' ids, and after each delivery a trainer and an engine. Out: how far apart their log-probs are;
CanaryError where that is more than it was at first. Leaves the delivery and its proof to delivery.py.

    first check of a run    its mean is kept in RUN_DIR/canary.json: two programs never compute to the last bit alike
    every later one         stops the run where the mean of a replica is above max(3 × that, 1e-4)
    each of them            stops it where one token is further apart than the recipe allows

A digest says that the bytes arrived, not that they are what is computed with: a copy that an engine keeps of a tensor
and does not renew is seen here alone. One small step of bfloat16 is not: it is below what rounding does.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rockroll.append import write_whole
from rockroll.controller.config import CanaryConfig
from rockroll.engine.api import Engine
from rockroll.engine.pool import EnginePool
from rockroll.errors import CanaryError, UsageError
from rockroll.train.api import Trainer

TOKENS = 33
"""Of each prompt at most: the first one has no log-prob."""
TIMES, LEAST = 3.0, 1e-4


class Drift(NamedTuple):
    """|log-prob in the trainer - log-prob in an engine|, in nats, of the replica that is furthest off."""

    max: float
    mean: float


class Canary:
    """prompts: ids of each. file: where the first mean of the run is kept. UsageError for a prompt of one token."""

    def __init__(self, prompts: Sequence[Sequence[int]], config: CanaryConfig, file: Path) -> None:
        for number, ids in enumerate(prompts):
            if len(ids) < 2:
                raise UsageError(
                    f"canary prompt {number + 1} is {len(ids)} token of this model, and a log-prob needs one before "
                    "it; write a longer text"
                )
        self._prompts = [list(ids[:TOKENS]) for ids in prompts]
        self._config, self._file = config, file

    async def check(self, trainer: Trainer, engine: Engine) -> Drift:
        """Raises CanaryError, with the replica, the token or the mean, and what was allowed."""
        both = await asyncio.gather(
            *(asyncio.gather(trainer.logprobs(ids), _of_each(engine, ids)) for ids in self._prompts)
        )
        apart: dict[str, list[float]] = {}
        for number, (theirs, each) in enumerate(both):
            for name, ours in each.items():
                apart.setdefault(name, []).extend(self._compared(number, name, theirs, ours))
        means = {name: sum(each) / len(each) for name, each in apart.items()}
        worst = max(means, key=lambda name: means[name])
        first = self._first(means[worst])
        most = max(TIMES * first, LEAST)
        if means[worst] > most:
            raise CanaryError(
                f"trainer and {worst} compute otherwise than they did: on the canary prompts their log-probs are "
                f"{means[worst]:.2e} apart on average; it was {first:.2e} at the first delivery, and {most:.2e} is "
                f"allowed. The engine has the bytes, which were proved, and does not compute with all of them"
            )
        return Drift(max(max(each) for each in apart.values()), means[worst])

    def _first(self, now: float) -> float:
        """The mean of the run's first check; this one, where there was none."""
        if not self._file.exists():
            write_whole(self._file, json.dumps({"mean_abs_dlogp": now}).encode())
        return float(json.loads(self._file.read_text())["mean_abs_dlogp"])

    def _compared(self, number: int, name: str, theirs: list[float], ours: list[float]) -> list[float]:
        differences = [abs(a - b) for a, b in zip(theirs, ours, strict=True)]
        # nan compares as neither larger nor smaller, and would hide behind any number
        worst = max(range(len(ours)), key=lambda i: math.inf if math.isnan(differences[i]) else differences[i])
        if not differences[worst] <= self._config.max_abs_dlogp:
            raise CanaryError(
                f"trainer and {name} disagree on the canary prompt {number + 1}: log-prob of token {worst + 1} "
                f"(id {self._prompts[number][worst + 1]}) is {theirs[worst]:.6f} in the trainer and {ours[worst]:.6f} "
                f"in {name}, {differences[worst]:.6f} apart; the recipe allows canary.max_abs_dlogp "
                f"{self._config.max_abs_dlogp}. The weights did not arrive, or the two compute with different precision"
            )
        return differences


async def _of_each(engine: Engine, ids: list[int]) -> dict[str, list[float]]:
    if isinstance(engine, EnginePool):
        return await engine.logprobs_of_each(ids)
    return {"the engine": await engine.logprobs(ids)}
