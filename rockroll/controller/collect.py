"""Batches without a trainer: what `rockroll rollout` records, for `rockroll train --replay`.

In: a RunConfig, a run directory, a display. Out: episode records and rows as a run of training has them, all sampled
with the weights that `config.model` has. Leaves sampling to rollout/, and learning to a replay of what is recorded.

    start ─► [ roll out ─► record ]*

Each recorded step is what a checkpoint is to training: a run that was stopped goes on after it, with what it had begun.
"""

from __future__ import annotations

import sys
import time

from rockroll.controller import domains, statistics
from rockroll.controller.config import RunConfig
from rockroll.controller.parts import Parts, parts
from rockroll.controller.progress import status_events
from rockroll.controller.records import Records
from rockroll.controller.run_dir import RunDir
from rockroll.controller.tally import Tally
from rockroll.controller.timeline import Timeline
from rockroll.errors import UsageError
from rockroll.observe.display import Display
from rockroll.observe.metrics import MetricsLog, Row
from rockroll.rollout.ledger import Ledger
from rockroll.train.algorithm import DATA_OBJECTIVES


async def collect(config: RunConfig, run: RunDir, display: Display, ray: str = "") -> int:
    """Records `config.steps` batches; the episodes that this call recorded. ray: a cluster's address, "" for this
    machine."""
    if config.train.objective in DATA_OBJECTIVES or config.replay:
        other = "records (replay)" if config.replay else f"a data set (train.objective {config.train.objective})"
        raise UsageError(
            f"rollout samples the recipe's task, and this recipe learns from {other}; `rockroll eval` samples held-out "
            "tasks"
        )
    records, tally = Records(run.path, config.records), Tally(config.rollout.max_staleness)
    with Timeline(run.path, config.records) as timeline:
        display.status.on_phase = timeline.phase
        events = timeline.beside(records.beside(status_events(display.status, tally.note)))
        async with parts(config, run, events, train=False, ray=ray) as made:
            return await made.processes.guard(_collect(config, run, display, made, records, tally))


async def _collect(
    config: RunConfig, run: RunDir, display: Display, made: Parts, records: Records, tally: Tally
) -> int:
    assert made.rollout is not None
    status, wanted = display.status, config.rollout.groups * config.rollout.episodes
    metrics = MetricsLog(
        run.path, resume_from=sys.maxsize if run.resume else None, most=config.records.most("metrics_keep")
    )
    done, episodes = max(0, metrics.last_step), 0
    if done >= config.steps:
        return 0
    status.curve = [row["reward/mean"] for row in metrics.rows]
    with Ledger(run.ledger, done) as ledger:
        if run.resume:
            display.line(str(ledger.past))
        stream = made.rollout.stream(
            version=done, batches=config.steps - done, ledger=ledger, in_order=config.deterministic
        )
        async with stream:
            for step in range(done + 1, config.steps + 1):
                status.step = records.step = step
                status.enter("rollout", wanted)
                begun = time.monotonic()
                groups = await stream.take()
                seconds = time.monotonic() - begun
                status.enter("recording")
                row: Row = {"step": step, "version": 0, **statistics.batch_row(groups, 0), **tally.row(groups)}
                row |= domains.batch_row(config.domains, groups, made.rollout.mixture)
                row |= {"time/rollout_s": seconds, "time/step_s": time.monotonic() - begun}
                records.trained(step, groups, [])
                metrics.write(row)
                made.processes.bound_logs(config.records.most("logs_keep"))
                ledger.rotate(step)
                ledger.prune(step)
                made.rollout.checkpointed(ledger.floor)
                episodes += sum(len(group.episodes) for group in groups)
                status.curve.append(row["reward/mean"])
                display.line(f"step {step:>4}   reward {row['reward/mean']:.3f}   {seconds:.1f} s")
                stream.stepped(step)
    status.enter("ending")
    metrics.close()
    return episodes
