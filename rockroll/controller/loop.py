"""The training loop, read top to bottom as its phases.

In: a RunConfig, a run directory, a display. Out: a trained model in checkpoints/, metrics.jsonl, episode records and
a Summary. Leaves every phase to its room: collecting to rollout/, learning to train/, processes to placement/; an
evaluation to evaluation.py, what is said of it all to progress.py.

    start ─► deliver v0 ─► canary ─► evaluate ─► [ roll out ─► train ─► deliver ─► canary ─► record ]* ─► evaluate

Where a data set is learnt from, a batch is dealt instead of sampled, and weights are delivered only where a task is to
evaluate them; the rest is the same. With rollout.max_staleness 0 the phases take turns. With more, groups of later
steps are sampled during all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rockroll.controller import agents, domains, statistics
from rockroll.controller.batch import to_batch
from rockroll.controller.boxes import pool_sizes
from rockroll.controller.census import Census
from rockroll.controller.config import RunConfig
from rockroll.controller.delivery import deliver
from rockroll.controller.evaluation import evaluate_into
from rockroll.controller.learner import Learner
from rockroll.controller.parts import Parts, parts
from rockroll.controller.progress import Phases, line, status_events, worst_case_line
from rockroll.controller.records import Records
from rockroll.controller.replay import Recorded, Replayed
from rockroll.controller.reporting import reporting, tracing
from rockroll.controller.run_dir import RunDir
from rockroll.controller.source import Sampled, Source, Written, data_set
from rockroll.controller.tally import Tally
from rockroll.controller.timeline import Timeline
from rockroll.data.source import DataPosition
from rockroll.observe.display import Display
from rockroll.observe.metrics import MetricsLog, Row
from rockroll.rollout.sample import Group


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run came to."""

    run_dir: Path
    steps: int
    """Trained here: not those before what it was resumed from."""
    first: float | None
    """Held-out pass rate before training; None where nothing was evaluated."""
    last: float | None
    ci95: tuple[float, float] | None
    """Of `last`."""
    checkpoint: Path | None
    episodes: int
    """Trained in these steps; of a data set, examples."""
    held_out: tuple[float, float] | None
    """Loss on held-out examples, before and after; None where there are none."""
    seconds: float


async def train(config: RunConfig, run: RunDir, display: Display, ray: str = "") -> Summary:
    """Trains to `config.steps`. Where `run.resume`: from the last checkpoint, over the batches that the run had taken
    since (trained again as they were), and on with what it had begun. ray: a cluster's address, "" for this machine."""
    data = data_set(config)
    if data is not None:
        config = dataclasses.replace(config, steps=data.steps(config.steps))
        display.status.steps = config.steps
    records, tally = Records(run.path, config.records), Tally(config.rollout.max_staleness)
    with (
        Timeline(run.path, config.records) as timeline,
        reporting(config, run, display) as also,
        tracing(config) as traces,
    ):
        display.status.on_phase = timeline.phase
        events = traces.beside(timeline.beside(records.beside(status_events(display.status, tally.note))))
        async with parts(config, run, events, train=True, data=data, ray=ray) as made:
            return await made.processes.guard(_train(config, run, display, made, records, tally, timeline, also))


async def _train(
    config: RunConfig,
    run: RunDir,
    display: Display,
    made: Parts,
    records: Records,
    tally: Tally,
    timeline: Timeline,
    also: Callable[[Row], None],
) -> Summary:
    status, trainer, ledger = display.status, made.trainer, made.ledger
    assert trainer is not None
    learner = Learner(config.train, trainer, made.critic)
    if made.engine is not None:
        status.engines = made.engine.counts
    status.census = Census(made.processes, made.engine, sandboxes=config.samples and bool(pool_sizes(config)))
    first_step = records.step = run.last_step
    kept_rows = ledger.past.last_step if ledger else first_step
    metrics = MetricsLog(
        run.path,
        resume_from=kept_rows if run.resume else None,
        most=config.records.most("metrics_keep"),
        tensorboard="tensorboard" in config.track,
        also=also,
    )
    status.curve = [row["reward/mean"] for row in metrics.rows if "reward/mean" in row]
    status.evals = [(int(row["step"]), row["eval/pass_rate"]) for row in metrics.rows if "eval/pass_rate" in row]
    trained_episodes = 0

    worst_case: Row = {}
    if config.train.worst_case_step:
        status.enter("the longest batch")
        worst_case = {**await learner.worst_case(config.engine.context_length)}
        display.line(worst_case_line(worst_case))
        if config.deterministic:  # what is measured differs from run to run
            worst_case = {name: value for name, value in worst_case.items() if not name.endswith("_peak_mb")}
    if first_step:
        status.enter("loading the checkpoint")
        await learner.load(run, first_step)
        display.line(f"continuing after step {first_step} from {run.checkpoint(first_step)}")
    source = _source(config, made, run, first_step, tally)
    if ledger and run.resume:
        display.line(str(ledger.past))
    for step, batch in source.again():
        status.enter(f"training step {step} again")
        await learner.step(batch)
        first_step = step
    status.enter("delivering weights")
    synced = await _sync(made)
    version = status.version = int(synced["version"])
    timeline.delivered(version)
    if not metrics.rows:
        row: Row = {"step": 0, **synced, **worst_case}
        await evaluate_into(row, config, made, status, records, 0)
        metrics.write(row)
        display.line(line(row))

    async with source.open(version, config.steps - first_step):
        for step in range(first_step + 1, config.steps + 1):
            status.step = records.step = step
            timed = Phases(status)
            last = step == config.steps
            # A row that was written before the run was killed stays as it was.
            new = step > metrics.last_step
            evaluating = new and (last or (config.eval.every > 0 and step % config.eval.every == 0))
            with timed(source.phase, 0 if made.deck else config.rollout.groups * config.rollout.episodes):
                taken = await source.take(step, version)
            with timed("train"):
                report = await learner.step(taken.batch)
            row = {"step": step, "version": report.version, **taken.row, **report.metrics}
            if made.deck is None or evaluating:
                with timed("sync"):
                    if config.deterministic:
                        await source.quiet()  # or it would depend on the clock which tokens the new weights sample
                    row |= await _sync(made)
                timeline.delivered(report.version)
                status.version = report.version
            version = report.version
            trained_episodes += taken.count
            row |= timed.row()
            if evaluating:
                await evaluate_into(row, config, made, status, records, step)
            if new:
                status.enter("recording")
                if taken.groups:
                    records.trained(step, taken.groups, report.advantages)
                metrics.write(row)
                made.processes.bound_logs(config.records.most("logs_keep"))
                if "reward/mean" in row:
                    status.curve.append(row["reward/mean"])
                display.line(line(row))
            if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
                status.enter("saving")
                metrics.sync()
                source.saving(step)
                await learner.save(run, step)
                run.prune(config.checkpoint.keep)
                source.saved(step, oldest=run.steps()[0])
            source.stepped(version)

    status.enter("ending")
    metrics.close()
    steps = run.steps()
    rates = [rate for _, rate in status.evals]
    evaluated = [row for row in metrics.rows if "eval/pass_rate" in row]
    losses = [row["eval/loss"] for row in metrics.rows if "eval/loss" in row]
    return Summary(
        run_dir=run.path,
        steps=config.steps - first_step,
        first=rates[0] if rates else None,
        last=rates[-1] if rates else None,
        ci95=(evaluated[-1]["eval/ci95_low"], evaluated[-1]["eval/ci95_high"]) if evaluated else None,
        checkpoint=run.checkpoint(steps[-1]) if steps else None,
        episodes=trained_episodes,
        held_out=(losses[0], losses[-1]) if losses else None,
        seconds=time.monotonic() - status.started,
    )


def _source(config: RunConfig, made: Parts, run: RunDir, first_step: int, tally: Tally) -> Source:
    """Where batches come from, from step `first_step` on."""
    if made.deck is not None:
        if first_step:
            made.deck.go_on(run.position(first_step, DataPosition))
        return Written(made.deck, run)

    def row(groups: list[Group], version: int) -> Row:
        counted = {**statistics.batch_row(groups, version), **({} if config.replay else tally.row(groups))}
        mixture = made.rollout.mixture if made.rollout else None
        return counted | domains.batch_row(config.domains, groups, mixture) | agents.batch_row(groups)

    batch = functools.partial(to_batch, temperature=config.rollout.temperature, spans=config.records.advantages)
    if config.replay:
        return Replayed(Recorded(config), batch, row)
    assert made.rollout is not None and made.ledger is not None
    stream = functools.partial(made.rollout.stream, ledger=made.ledger, in_order=config.deterministic)
    return Sampled(stream, made.ledger, batch, row, made.rollout.checkpointed)


async def _sync(made: Parts) -> Row:
    """The trainer's weights in the engine, proved: the entries of a row. Without an engine, their version alone."""
    assert made.trainer is not None
    if made.engine is None:
        return {"version": (await made.trainer.info()).version}
    version = await deliver(made.trainer, made.engine, made.weights)
    drift = await made.canary.check(made.trainer, made.engine)
    apart = {"canary/max_abs_dlogp": drift.max, "canary/mean_abs_dlogp": drift.mean}
    return {"version": version, **apart, **made.engine.counts()}
