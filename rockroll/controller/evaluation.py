"""What the policy is worth on held-out tasks, or on held-out examples: before, during and after training, or alone.

In: a run's parts, or a RunConfig. Out: pass rates with their intervals; a metrics row's eval/* entries. Leaves playing
the episodes to rollout/, the loss to train/, when to do it to loop.py.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rockroll.controller import domains, statistics
from rockroll.controller.config import RunConfig
from rockroll.controller.parts import Parts, parts
from rockroll.controller.progress import status_events
from rockroll.controller.records import Records
from rockroll.controller.run_dir import RunDir
from rockroll.errors import UsageError
from rockroll.observe.display import Display, Status
from rockroll.observe.metrics import Row
from rockroll.rollout.domain import held_out
from rockroll.rollout.sample import Episode


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A pass rate on held-out tasks."""

    pass_rate: float
    ci95: tuple[float, float]
    episodes: int
    """Valid ones: what infrastructure broke is replaced, and not in here."""
    tasks: dict[str, Evaluation] = field(default_factory=dict)
    """The same of each task, where there are several."""


async def evaluate(config: RunConfig, run: RunDir, display: Display, ray: str = "") -> Evaluation:
    """The pass rate of `config.model` on held-out tasks; starts no trainer. ray: a cluster's address, "" for this
    machine."""
    if not config.domains:
        raise UsageError(
            "this recipe has no task to be evaluated on, as in task: {env: rockroll:shell}; the loss on held-out "
            "examples is eval/loss in the run's metrics.jsonl"
        )
    config = dataclasses.replace(config, replay="")  # that recipe's model is evaluated as any
    records = Records(run.path, config.records)
    async with parts(config, run, records.beside(status_events(display.status)), train=False, ray=ray) as made:
        return await made.processes.guard(_evaluate(config, made, display.status, records, 0))


async def _evaluate(config: RunConfig, made: Parts, status: Status, records: Records, step: int) -> Evaluation:
    assert made.rollout is not None
    status.enter("evaluation", config.eval.episodes)
    held = held_out(config.domains, config.eval.episodes)
    episodes = await made.rollout.evaluate(held, config.eval.temperature)
    records.evaluated(step, episodes)
    return rated(config, episodes)


def rated(config: RunConfig, episodes: Sequence[Episode]) -> Evaluation:
    """What held-out episodes come to, in all and for each task."""
    return dataclasses.replace(_rated(episodes), tasks=domains.apart(config.domains, episodes, _rated))


def _rated(episodes: Sequence[Episode]) -> Evaluation:
    valid = [episode for episode in episodes if episode.valid]
    passed = sum((episode.reward or 0) >= statistics.PASS for episode in valid)
    return Evaluation(
        pass_rate=statistics.pass_rate(episodes), ci95=statistics.wilson(passed, len(valid)), episodes=len(valid)
    )


async def evaluate_into(row: Row, config: RunConfig, made: Parts, status: Status, records: Records, step: int) -> None:
    begun = time.monotonic()
    if made.deck is not None and made.trainer is not None and (held_out := made.deck.held_out()) is not None:
        status.enter("held-out loss")
        measured = await made.trainer.measure(held_out)
        row |= {f"eval/{name.removeprefix('loss/')}": value for name, value in measured.items()}
        row |= {"eval/loss": measured[f"loss/{config.train.objective}"], "time/eval_s": time.monotonic() - begun}
    if made.rollout is None or not config.eval.episodes:
        return
    result = await _evaluate(config, made, status, records, step)
    for suffix, each in {"": result, **{f"/{name}": one for name, one in result.tasks.items()}}.items():
        row |= {
            f"eval/pass_rate{suffix}": each.pass_rate,
            f"eval/ci95_low{suffix}": each.ci95[0],
            f"eval/ci95_high{suffix}": each.ci95[1],
            f"eval/episodes{suffix}": each.episodes,
        }
    row["time/eval_s"] = time.monotonic() - begun
    status.evals.append((step, result.pass_rate))
