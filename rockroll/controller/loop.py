"""The training loop, read top to bottom as its phases.

In: a RunConfig, a run directory, a display. Out: a trained model in checkpoints/, metrics.jsonl, episode records and
a Summary. Leaves every phase to its room: collecting to rollout/, learning to train/, processes to placement/.

    start ─► deliver v0 ─► canary ─► evaluate ─► [ roll out ─► train ─► deliver ─► canary ─► record ]* ─► evaluate

Where a data set is learnt from, a batch is dealt instead of sampled, and weights are delivered only where a task is to
evaluate them; the rest is the same. With rollout.max_staleness 0 the phases take turns. With more, groups of later
steps are sampled during all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rockroll.controller import agents, domains, statistics
from rockroll.controller.boxes import pool_sizes
from rockroll.controller.census import Census
from rockroll.controller.config import RunConfig
from rockroll.controller.delivery import deliver
from rockroll.controller.learner import Learner
from rockroll.controller.parts import Parts, parts
from rockroll.controller.records import Records
from rockroll.controller.replay import Recorded, Replayed
from rockroll.controller.reporting import reporting, tracing
from rockroll.controller.run_dir import RunDir
from rockroll.controller.source import Sampled, Source, Written, data_set
from rockroll.controller.tally import Tally
from rockroll.controller.timeline import Timeline
from rockroll.data.source import DataPosition
from rockroll.errors import UsageError
from rockroll.observe.display import Display, Status
from rockroll.observe.metrics import MetricsLog, Row
from rockroll.rollout.domain import held_out
from rockroll.rollout.sample import Episode, Event, Group
from rockroll.train.api import TrainBatch, TrainSample, Turn


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run came to."""

    run_dir: Path
    steps: int
    first: float | None
    """Held-out pass rate before training; None where nothing was evaluated."""
    last: float | None
    ci95: tuple[float, float] | None
    """Of `last`."""
    checkpoint: Path | None
    episodes: int
    """Trained ones; of a data set, examples."""
    held_out: tuple[float, float] | None
    """Loss on held-out examples, before and after; None where there are none."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A pass rate on held-out tasks."""

    pass_rate: float
    ci95: tuple[float, float]
    episodes: int
    """Valid ones: what infrastructure broke is replaced, and not in here."""
    tasks: dict[str, Evaluation] = field(default_factory=dict)
    """The same of each task, where there are several."""


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
        display.line(_worst_case(worst_case))
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
        await _evaluate_into(row, config, made, status, records, 0)
        metrics.write(row)
        display.line(_line(row))

    async with source.open(version, config.steps - first_step):
        for step in range(first_step + 1, config.steps + 1):
            status.step = records.step = step
            timed = _Phases(status)
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
                await _evaluate_into(row, config, made, status, records, step)
            if new:
                status.enter("recording")
                if taken.groups:
                    records.trained(step, taken.groups, report.advantages)
                metrics.write(row)
                made.processes.bound_logs(config.records.most("logs_keep"))
                if "reward/mean" in row:
                    status.curve.append(row["reward/mean"])
                display.line(_line(row))
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
        steps=config.steps,
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
    return Sampled(stream, made.ledger, batch, row)


async def _sync(made: Parts) -> Row:
    """The trainer's weights in the engine, proved: the entries of a row. Without an engine, their version alone."""
    assert made.trainer is not None
    if made.engine is None:
        return {"version": (await made.trainer.info()).version}
    version = await deliver(made.trainer, made.engine, made.weights)
    drift = await made.canary.check(made.trainer, made.engine)
    apart = {"canary/max_abs_dlogp": drift.max, "canary/mean_abs_dlogp": drift.mean}
    return {"version": version, **apart, **made.engine.counts()}


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


async def _evaluate_into(row: Row, config: RunConfig, made: Parts, status: Status, records: Records, step: int) -> None:
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


def to_batch(step: int, groups: list[Group], temperature: float, spans: int = 0) -> TrainBatch:
    """The groups as the trainer takes them: every branch of an episode is a sample with that episode's reward; of
    several agents each is an episode of its own, in a group of its own (agents.py).

    spans: how many spans of equal advantages of each sample the trainer is to tell.
    """
    samples: list[TrainSample] = []
    index: dict[tuple[int, str], int] = {}
    number = 0
    for at, group in enumerate(groups):
        for part in agents.parts(group):
            gains = _turn_rewards(part)
            for sample in part.samples:
                samples.append(
                    TrainSample(
                        ids=sample.ids,
                        mask=sample.mask,
                        logprobs=sample.logprobs,
                        versions=sample.versions,
                        episode=number,
                        group=index.setdefault((at, part.agent), len(index)),
                        reward=part.reward,
                        domain=group.task,
                        turns=[
                            Turn(
                                number=t.number,
                                start=t.start,
                                end=t.end,
                                state=t.state,
                                reward=gains.get(t.number, 0.0),
                            )
                            for t in sample.turns
                        ],
                    )
                )
            number += 1
    return TrainBatch(step=step, samples=samples, temperature=temperature, spans=spans)


def _turn_rewards(part: agents.Part) -> dict[int, float]:
    """What each answer earned, by its number: what the environment gave for it, or the whole at the last one."""
    if part.turn_rewards:
        return dict(enumerate(part.turn_rewards))
    last = max((turn.number for sample in part.samples for turn in sample.turns), default=-1)
    return {last: part.reward}


class _Phases:
    """Seconds by phase of one step."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._seconds: dict[str, float] = {}
        self._begun = time.monotonic()

    @contextmanager
    def __call__(self, phase: str, wanted: int = 0) -> Iterator[None]:
        self._status.enter(phase, wanted)
        begun = time.monotonic()
        yield
        seconds = time.monotonic() - begun
        self._seconds[phase] = seconds
        self._status.times[phase] = self._status.times.get(phase, 0.0) + seconds

    def row(self) -> dict[str, float]:
        return {f"time/{k}_s": v for k, v in self._seconds.items()} | {"time/step_s": time.monotonic() - self._begun}


def status_events(status: Status, also: Callable[[Event], None] = lambda _: None) -> Callable[[Event], None]:
    """What the rollout tells, counted into the status. also: told too."""

    def on_event(event: Event) -> None:
        also(event)
        status.running = event.running
        if event.kind == "started":
            status.flights.began(event.id, event.task)
        elif event.placed is not None:
            status.flights.placed(event.placed.id, event.placed.sandbox, event.placed.node)
        elif event.kind == "turn":
            status.count_tokens(event.tokens)
            status.flights.answered(event.id, event.said)
        elif event.kind == "finished" and event.episode is not None:
            status.flights.ended(event.episode.id)
            count(event.episode)

    def count(episode: Episode) -> None:
        status.done += episode.valid
        status.outcomes[episode.outcome] = status.outcomes.get(episode.outcome, 0) + 1

    return on_event


def _worst_case(row: Row) -> str:
    """The worst-case step in one line of text."""
    peaks = [f"{name} {row[key]:,.0f} MB" for name, key in _PEAKS.items() if key in row]
    return f"the longest batch, {row['memory/worst_case_tokens']:,.0f} tokens, fits: {', '.join(peaks)} at most"


_PEAKS = {"trainer": "memory/trainer_peak_mb", "critic": "memory/critic_peak_mb"}


def _line(row: Row) -> str:
    """One step in one line of text."""
    said = [f"step {row['step']:>4}"]
    if "reward/mean" in row:
        said.append(f"reward {row['reward/mean']:.3f}")
        waited = "rollout" if "time/rollout_s" in row else "replay"
        said.append(
            f"{row['time/step_s']:.1f} s ({waited} {row[f'time/{waited}_s']:.1f}, train {row['time/train_s']:.1f})"
        )
        broken = sum(row[f"episodes/{name}"] for name in ("env_error", "infra_error"))
        if broken:
            said.append(f"{broken:.0f} broken episodes replaced")
    if "data/epoch" in row:
        name = next(name for name in ("loss/sft", "loss/dpo") if name in row)
        said.append(f"loss {row[name]:.4f}")
        said.append(f"{row['time/step_s']:.1f} s (data {row['time/data_s']:.1f}, train {row['time/train_s']:.1f})")
    if "eval/loss" in row:
        said.append(f"held-out loss {row['eval/loss']:.4f}")
    if "eval/pass_rate" in row:
        low, high = row["eval/ci95_low"], row["eval/ci95_high"]
        said.append(f"held out {row['eval/pass_rate']:.1%} (95 % interval {low:.1%} to {high:.1%})")
        said += domains.said(row)
    return "   ".join(said)
