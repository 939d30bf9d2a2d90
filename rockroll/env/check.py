"""What `rockroll env check NAME` tries out: a contract test of somebody's task.

In: a task's name and options. Out: findings, each with what was seen and what to do about it. Leaves the contract
itself to api.py, the rules to checks/, and showing the findings to the command line.

An Env is played with actions drawn at random, with nonsense, twice with one seed, and two at once: checks/env_rules.py.
A SandboxTask is asked for its situations: checks/work_rules.py. After a report with a hang the process should end: the
thread of that call does not (checks/calls.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rockroll.env.checks.calls import Broken, Calls, Hang
from rockroll.env.checks.env_rules import EnvRules
from rockroll.env.checks.finding import Finding, Report
from rockroll.env.checks.work_rules import work_rules
from rockroll.env.registry import find, make
from rockroll.errors import RockrollError


def check(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    actions: Sequence[str] = (),
    steps: int = 1000,
    limit: float = 10.0,
) -> Report:
    """Try a task out. actions: to draw from, in place of its own. steps: of an episode that should have ended by then.
    limit: seconds for each call."""
    options = dict(options or {})
    calls = Calls(limit)
    try:
        cls = find(name)
        task = calls.of(make, name, **options)
    except (RockrollError, Hang, Broken) as error:
        return Report(name, "?", [Finding("made", "fail", str(error))])
    played = all(callable(getattr(task, each, None)) for each in ("reset", "step"))
    worked_on = all(callable(getattr(task, each, None)) for each in ("situation", "grade"))
    if played == worked_on:
        detail = f"it has {'both of reset and step, and situation and grade' if played else 'neither'}"
        cure = "a task has either reset and step (an Env), or situation and grade (a SandboxTask); see docs/tasks.md"
        return Report(name, "?", [Finding("kind", "fail", detail, cure)])
    if worked_on:
        return Report(name, "SandboxTask", work_rules(task, calls))
    takes_split = not inspect.isfunction(cls) and "split" in inspect.signature(cls).parameters

    def another(split: str | None = None) -> Any:
        return calls.of(make, name, **({**options, "split": split} if split else options))

    return Report(
        name, "Env", EnvRules(another, calls, actions, steps).findings(takes_split and "split" not in options)
    )
