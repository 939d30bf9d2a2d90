"""The rules of a SandboxTask (api.py) that need no sandbox, each tried out on somebody's.

In: the task, and how to call it. Out: a finding for each rule. Leaves its grade, which takes a sandbox, to a run.
"""

from __future__ import annotations

import inspect
from typing import Any

from rockroll.env.api import Situation
from rockroll.env.checks.calls import Broken, Calls, Hang
from rockroll.env.checks.finding import Finding, Level
from rockroll.errors import RockrollError

SITUATIONS = 64
"""Of each split."""
TWICE = 8
"""Of those, asked for a second time."""
PREPARED_S = 900.0
"""A `prepare` that takes longer, where images are built, hangs."""


def work_rules(task: Any, calls: Calls) -> list[Finding]:
    """The rules of a SandboxTask that need no sandbox."""
    found: list[Finding] = []

    def add(name: str, wrong: str, fine: str, cure: str, level: Level = "fail") -> bool:
        found.append(Finding(name, level if wrong else "ok", wrong or fine, cure if wrong else ""))
        return not wrong

    try:
        if callable(prepare := getattr(task, "prepare", None)):
            Calls(PREPARED_S).of(prepare)
        situations = {
            split: [calls.of(task.situation, seed, split) for seed in range(SITUATIONS)] for split in ("train", "eval")
        }
        again = [calls.of(task.situation, seed, "train") for seed in range(TWICE)]
    except (Hang, Broken, RockrollError) as error:
        return [Finding("situation", "fail", str(error), "def situation(self, seed, split): … return Situation(…)")]
    every = [situation for each in situations.values() for situation in each]
    odd = next((type(each).__name__ for each in every if not isinstance(each, Situation)), "")
    cure = "return rockroll.env.api.Situation(instruction=…, files={path: bytes})"
    if not add("situation", f"got a {odd}" if odd else "", f"{len(every)} of them", cure):
        return found
    empty = any(not isinstance(each.instruction, str) or not each.instruction.strip() for each in every)
    add("instruction", "an instruction is empty, or no text" if empty else "", "text", "say the goal in words")
    texts = [path for each in every for path, data in each.files.items() if not isinstance(data, bytes)]
    add("files", f"{texts[0]} is no bytes" if texts else "", "bytes by path", 'write text as b"…" or with .encode()')
    shown = [(each.instruction, dict(each.files), dict(each.env)) for each in situations["train"][:TWICE]]
    twice = [(each.instruction, dict(each.files), dict(each.env)) for each in again]
    differ = next((seed for seed in range(TWICE) if shown[seed] != twice[seed]), None)
    cure = "draw from random.Random(f'{split} {seed}'), and keep nothing between calls"
    add("same seed", "" if differ is None else f"seed {differ} gave two situations", "the same situation twice", cure)
    train, held = ({repr((s.instruction, s.files)) for s in situations[split]} for split in ("train", "eval"))
    shared = len(train & held)
    cure = "draw from what the split has a share in, as rockroll/env/shell.py does"
    add("splits", f"{shared} situations are in both" if shared else "", "none shared", cure, "warn")
    grades = inspect.iscoroutinefunction(task.grade)
    add(
        "grade", "" if grades else "it is no coroutine", "async; it is not run: that takes a sandbox", "async def grade"
    )
    return found
