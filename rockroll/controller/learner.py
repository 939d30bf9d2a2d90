"""The policy and, where the algorithm has one, its critic, as the loop sees them: one step, one save, one load.

In: batches of sampled tokens. Out: one report a step, the critic's figures in it under critic/. Leaves the arithmetic
to the two trainers, weights for the engine to delivery.py.

    batch ─► unbranched ─► critic: values ─► critic: learns its returns ─► policy: learns its advantages

The two take turns, so that on a CPU each has all cores and on one GPU only one holds activations.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec

from rockroll.controller.run_dir import RunDir
from rockroll.train.api import StepReport, TrainBatch, Trainer
from rockroll.train.config import TrainConfig
from rockroll.train.unbranched import unbranched

_OF_THE_BATCH = ("tokens/", "time/")  # said once, by the policy


class Learner:
    """Made for one run. Calls are not concurrent."""

    def __init__(self, config: TrainConfig, policy: Trainer, critic: Trainer | None = None) -> None:
        """critic: one exactly where `config.has_critic`."""
        assert config.has_critic == (critic is not None), "an algorithm with a critic needs one, others have none"
        self._config, self._policy, self._critic = config, policy, critic

    async def worst_case(self, longest: int) -> dict[str, float]:
        """The longest batch, through both trainers; comes before everything else. Returns memory/* metrics.

        longest: tokens of a sequence, at most; 0: the model's context.
        """
        done = await self._policy.worst_case(longest)
        row = {
            "memory/worst_case_tokens": float(done.rows * done.length),
            "memory/trainer_peak_mb": _mb(done.peak_bytes),
        }
        if self._critic is not None:
            row["memory/critic_peak_mb"] = _mb((await self._critic.worst_case(longest)).peak_bytes)
        return row

    async def load(self, run: RunDir, step: int) -> None:
        """Both continue from their checkpoints of that step."""
        if self._critic is not None:
            await self._critic.load(str(run.critic_checkpoint(step)))
        await self._policy.load(str(run.checkpoint(step)))

    async def save(self, run: RunDir, step: int) -> None:
        """The critic first: a checkpoint of the policy is what makes the step one to continue from."""
        if self._critic is not None:
            await self._critic.save(str(run.critic_checkpoint(step)))
        await self._policy.save(str(run.checkpoint(step)))

    async def step(self, batch: TrainBatch) -> StepReport:
        """One step of both; the version is the policy's. Raises TrainError for a batch that cannot be trained."""
        if self._critic is None:
            return await self._policy.step(batch)
        assert self._config.critic is not None
        samples = len(batch.samples)
        batch, branched = unbranched(batch)
        begun = time.monotonic()
        values = await self._critic.values(batch)
        valued = [msgspec.structs.replace(s, values=v) for s, v in zip(batch.samples, values, strict=True)]
        batch = msgspec.structs.replace(batch, samples=valued)
        learnt = await self._critic.step(batch)
        seconds = time.monotonic() - begun
        leads = batch.step <= self._config.critic.head_start
        report = await self._policy.step(msgspec.structs.replace(batch, learn=not leads))
        return StepReport(
            version=report.version,
            metrics={
                **report.metrics,
                **_critics(learnt.metrics),
                "episodes/branched": float(branched),
                "time/critic_s": seconds,
            },
            # they are told by sample: where some were left out, nobody knows whose they are
            advantages=report.advantages if len(batch.samples) == samples else [],
        )


def _critics(metrics: Mapping[str, float]) -> dict[str, float]:
    """loss/x of the critic is critic/x of the step."""
    return {
        f"critic/{name.removeprefix('loss/')}": value
        for name, value in metrics.items()
        if not name.startswith(_OF_THE_BATCH)
    }


def _mb(n: int) -> float:
    return n / 1e6
