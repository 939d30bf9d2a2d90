"""The metrics of some runs as they stand on a page.

In: runs. Out: names of metrics by section, series of one metric, what a table says of a run. Leaves drawing to
chart.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rockroll.observe.metrics import Row
from rockroll.view.chart import Series, number
from rockroll.view.episodes import Episodes
from rockroll.view.runs import Run

FIRST = ("eval/pass_rate", "reward/mean")
"""What is looked at first: drawn above all sections."""
SECTIONS = ("eval", "reward", "groups", "episodes", "loss", "advantage", "logp_diff", "canary", "staleness", "tokens")
"""In this order; any other after them."""
_BOUNDS = frozenset(("ci95_low", "ci95_high"))
"""What a name has in it that is drawn as the interval of another."""
SPREAD, EQUAL = "groups/reward_std", "groups/all_equal"
"""From the records, not from metrics.jsonl: the spread within groups, and the share of groups without any."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run in one line of a table."""

    name: str
    colour: int
    going_on: bool
    step: int
    steps: int | None
    reward: str
    passed: str
    """The last held-out pass rate with its interval."""
    episodes: int
    outcomes: dict[str, int]
    seconds: float
    indexing: tuple[int, int] | None


def facts(run: Run, colour: int) -> Facts:
    rows = run.rows
    reward = last(rows, "reward/mean")
    evaluated = next((row for row in reversed(rows) if "eval/pass_rate" in row), None)
    passed = "–"
    if evaluated is not None:
        passed = f"{evaluated['eval/pass_rate']:.1%}"
        if "eval/ci95_low" in evaluated:
            passed += f" ({evaluated['eval/ci95_low']:.1%} to {evaluated['eval/ci95_high']:.1%})"
    outcomes = Episodes(run).counts("outcome")
    steps = run.recipe.get("steps")
    return Facts(
        name=run.name,
        colour=colour,
        going_on=run.going_on,
        step=int(rows[-1].get("step", 0)) if rows else 0,
        steps=steps if isinstance(steps, int) else None,
        reward="–" if reward is None else number(reward),
        passed=passed,
        episodes=sum(outcomes.values()),
        outcomes=outcomes,
        seconds=sum(row.get("time/step_s", 0.0) for row in rows),
        indexing=run.indexing,
    )


def last(rows: Sequence[Row], name: str) -> float | None:
    return next((row[name] for row in reversed(rows) if name in row), None)


def sections(runs: Iterable[Run]) -> list[tuple[str, list[str]]]:
    """(section, names of its metrics), of all runs together."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        seen: dict[str, None] = {}
        for row in run.rows:
            seen |= dict.fromkeys(row)
        for name in seen:
            if name != "step" and _BOUNDS.isdisjoint(name.split("/")):
                found.setdefault(name.partition("/")[0] if "/" in name else "other", {})[name] = None
        if Episodes(run).steps():
            found.setdefault("groups", {}).update({SPREAD: None, EQUAL: None})
    order = {section: i for i, section in enumerate(SECTIONS)}
    return [
        (section, sorted(found[section]))
        for section in sorted(found, key=lambda each: (order.get(each, len(order)), each))
    ]


def series(runs: Sequence[Run], name: str) -> list[Series]:
    """One metric of every run that has it; a run's colour is its place among `runs`."""
    found = [_of_run(run, name, colour) for colour, run in enumerate(runs)]
    return [one for one in found if one.points]


def _of_run(run: Run, name: str, colour: int) -> Series:
    if name in (SPREAD, EQUAL):
        which = 1 if name == SPREAD else 2
        return Series(name=run.name, colour=colour, points=[(row[0], row[which]) for row in Episodes(run).spread()])
    rows = [row for row in run.rows if isinstance(row.get(name), int | float)]
    intervals = {}
    parts = name.split("/")
    if "pass_rate" in parts:  # of one task it is eval/pass_rate/TASK, and its bounds eval/ci95_low/TASK
        bounds = [
            "/".join(bound if part == "pass_rate" else part for part in parts) for bound in ("ci95_low", "ci95_high")
        ]
        intervals = {row["step"]: (row[bounds[0]], row[bounds[1]]) for row in rows if all(b in row for b in bounds)}
    points = [(float(row["step"]), float(row[name])) for row in rows]
    return Series(name=run.name, colour=colour, points=points, intervals=intervals)


def described(found: Sequence[Series], name: str) -> str:
    """A curve in words."""
    said = []
    for one in found:
        values = [y for _, y in one.points if math.isfinite(y)]
        line = f"{one.name}: {number(one.points[-1][1])} at step {number(one.points[-1][0])}"
        said.append(f"{line}, lowest {number(min(values))}, highest {number(max(values))}" if values else line)
    return f"{name}. " + ". ".join(said)
