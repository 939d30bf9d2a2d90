"""What a whole run would take, from a few dry steps of it: seconds, tokens, disk.

In: a recipe, and the run directory of its dry steps. Out: the dry recipe; the figures. Leaves running them to the loop.

A dry step is a whole one, at a learning rate of 0: sampling, the backward, the optimizer, delivery, saving, with
weights that stay what they were to the last bit. Forecasts are sums over steps that are all alike: a policy that learns
to answer at greater length takes longer than that.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rockroll import units
from rockroll.controller.config import RunConfig
from rockroll.observe.config import MetricsConfig
from rockroll.observe.metrics import Row, read_rows
from rockroll.observe.trace import NAME as TRACE

_PHASES = ("rollout", "data", "replay", "train", "sync")


def dry(config: RunConfig, steps: int) -> RunConfig:
    """So many steps of it that change no weight, with an evaluation before and after, and one checkpoint."""
    critic = config.train.critic
    if critic is not None:
        critic = dataclasses.replace(critic, lr=0.0, head_start=0)  # steps of the critic alone are shorter
    train = dataclasses.replace(config.train, lr=0.0, critic=critic)
    return dataclasses.replace(
        config,
        steps=steps,
        train=train,
        eval=dataclasses.replace(config.eval, every=0),
        checkpoint=dataclasses.replace(config.checkpoint, every=0),
        records=dataclasses.replace(config.records, trace_mb=max(1, config.records.trace_mb)),
        track=(),
        metrics=MetricsConfig(),
    )


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure."""

    what: str
    unit: str
    """s, tokens, or bytes."""
    each: float
    """Of one step, evaluation or checkpoint."""
    times: int
    """How many of them the whole run has."""
    whole: float
    """Of the whole run; less than each × times where the recipe bounds it."""


def forecast(config: RunConfig, run: Path) -> list[Line]:
    """config: of the whole run. run: the directory of its dry steps.

    The first step, which warms everything up, is left out where there is another one.
    """
    rows = read_rows(run / "metrics.jsonl")
    done = [row for row in rows if row["step"] > 0]
    warm = done[1:] or done
    steps = config.steps
    lines = []

    def add(what: str, unit: str, each: float, times: int, most: float | None = None) -> None:
        whole = each * times
        lines.append(
            Line(what=what, unit=unit, each=each, times=times, whole=whole if most is None else min(whole, most))
        )

    for phase in _PHASES:
        if any(f"time/{phase}_s" in row for row in warm):
            add(phase, "s", _mean(warm, f"time/{phase}_s"), steps)
    if evaluated := [row for row in rows if "time/eval_s" in row]:
        add("evaluation", "s", _mean(evaluated, "time/eval_s"), _times(steps, config.eval.every) + 1)
    saves = _times(steps, config.checkpoint.every)
    add("saving", "s", _longest(run / TRACE, "saving"), saves)
    for what, key in (("sampled", "tokens/sampled"), ("trained", "tokens/trained")):
        if any(key in row for row in warm):
            add(what, "tokens", _mean(warm, key), steps)
    kept = min(saves, config.checkpoint.keep) if config.checkpoint.keep else saves
    add("checkpoints", "bytes", _bytes(run / "checkpoints"), kept)
    add("episode records", "bytes", _bytes(run / "episodes", "train-*") / len(done), steps, config.records.most())
    add("journal", "bytes", _bytes(run / "journal") / len(done), steps, config.rollout.journal_most())
    add("time line", "bytes", _bytes(run, TRACE) / len(done), steps, config.records.trace_mb * 2**20)
    return [line for line in lines if line.whole]


def total(lines: Sequence[Line], unit: str) -> float:
    """Of the whole run."""
    return sum(line.whole for line in lines if line.unit == unit)


def shown(value: float, unit: str) -> str:
    """For people."""
    if unit == "bytes":
        return f"{units.show_size(round(value))}B"
    if unit == "s":
        return f"{value / 3600:,.1f} h" if value >= 3600 else f"{value:,.1f} s"
    return f"{value:,.0f} {unit}"


def _times(steps: int, every: int) -> int:
    """How often what happens every so many steps, and after the last one, does."""
    return -(-steps // every) if every else min(steps, 1)


def _mean(rows: Sequence[Row], key: str) -> float:
    found = [row[key] for row in rows if key in row]
    return sum(found) / len(found) if found else 0.0


def _longest(trace: Path, phase: str) -> float:
    """Seconds of the longest phase of that name."""
    events = json.loads(trace.read_text()) if trace.exists() else []
    return max((event["dur"] / 1e6 for event in events if event["ph"] == "X" and event["name"] == phase), default=0.0)


def _bytes(folder: Path, files: str = "*") -> int:
    return sum(path.stat().st_size for path in folder.rglob(files) if path.is_file())
