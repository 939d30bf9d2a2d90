"""`rockroll:code`: write a function; cases that nobody has seen decide whether it is right.

In: a seed and a split. Out: a situation (what the function does, in words, with two examples, and the file to write),
and the reward 1 or 0 for all hidden cases together. Leaves running the agent to its room.

A function takes a list of whole numbers through steps drawn from STEPS: easy one, medium three, hard six. The cases are
run in a fork of the sandbox, so that nothing the agent left there runs beside them; the box is given the inputs alone,
and what came out is compared here, where the code under test has no say.

Scores: `solution()` 1.00 on every level. A random policy, which draws as many steps of its own with their numbers,
solves easy 0.04, medium 0.00, hard 0.00 (tests/env/test_reasoning.py). One function in eight, by a hash of its text, is
for evaluation.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from rockroll.env.api import Situation, Split

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox

EVAL_SHARE = 8
"""One function in so many belongs to the eval split."""
LEVELS: Mapping[str, int] = {"easy": 1, "medium": 3, "hard": 6}
"""Steps of a function."""
FILE = "solution.py"
CASES = 24
TEST_SECONDS = 30.0
"""Of all hidden cases together: each takes microseconds."""


@dataclass(frozen=True)
class Step:
    """One thing that is done with the list. k: the numbers that it may be drawn with; empty: it has none."""

    says: str
    code: str
    """An expression of `n`, the list, and {k}."""
    k: tuple[int, ...] = ()


STEPS = (
    Step("keep only the even numbers", "[x for x in n if x % 2 == 0]"),
    Step("keep only the odd numbers", "[x for x in n if x % 2]"),
    Step("keep only the numbers greater than {k}", "[x for x in n if x > {k}]", tuple(range(-10, 11))),
    Step("leave out every number that is divisible by {k}", "[x for x in n if x % {k}]", (3, 4, 5, 6, 7)),
    Step("add {k} to each number", "[x + {k} for x in n]", tuple(range(2, 20))),
    Step("multiply each number by {k}", "[x * {k} for x in n]", (2, 3, 4, 5, -1, -2)),
    Step("replace each number by its distance from {k}", "[abs(x - {k}) for x in n]", tuple(range(10))),
    Step("replace each number by its remainder when divided by {k}", "[x % {k} for x in n]", tuple(range(3, 12))),
    Step("sort the numbers, the smallest first", "sorted(n)"),
    Step("sort the numbers, the largest first", "sorted(n, reverse=True)"),
    Step("reverse their order", "n[::-1]"),
    Step("leave out the first {k}", "n[{k}:]", (1, 2, 3)),
    Step("keep only the first {k}", "n[:{k}]", (3, 4, 5, 6)),
    Step("move the first {k} to the end", "n[{k}:] + n[:{k}]", (1, 2, 3)),
    Step("leave out repetitions, keeping the first of each", "list(dict.fromkeys(n))"),
    Step("replace each number by the sum of all up to and including it", "[sum(n[: i + 1]) for i in range(len(n))]"),
    Step("take every {k}th number, beginning with the first", "n[::{k}]", (2, 3)),
    Step("put the number {k} before all others", "[{k}] + n", tuple(range(-5, 6))),
)

DRIVER = """
import importlib.util, json, os, sys
cases = json.load(sys.stdin)
said = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the code prints is no answer
answers = []
try:
    spec = importlib.util.spec_from_file_location("solution", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for case in cases:
        answers.append(module.solve(case))
except BaseException as error:
    print(type(error).__name__, error, file=sys.stderr)
said.write(json.dumps(answers))
said.flush()
os._exit(0)
"""
"""Runs the code on inputs and tells what came out; it knows no right answer."""


@dataclass(frozen=True)
class Function:
    """What `grade` needs. Never enters the sandbox."""

    steps: tuple[tuple[Step, int | None], ...]
    cases: tuple[tuple[int, ...], ...]

    def __call__(self, numbers: list[int]) -> list[int]:
        n = numbers
        for step, k in self.steps:
            n = _made(step, k)(n)
        return n

    def text(self) -> str:
        return "; then ".join(step.says.format(k=k) for step, k in self.steps)

    def source(self) -> str:
        lines = "".join(f"    n = {step.code.format(k=k)}\n" for step, k in self.steps)
        return f"def solve(n):\n{lines}    return n\n"


@cache
def _made(step: Step, k: int | None) -> Callable[[list[int]], list[int]]:
    return eval(f"lambda n: {step.code.format(k=k)}")  # our own expressions, never a model's


class CodeTask:
    """A `SandboxTask`. level: easy, medium or hard."""

    def __init__(self, level: str = "easy") -> None:
        if level not in LEVELS:
            raise ValueError(f"level is one of {', '.join(LEVELS)}; got {level!r}")
        self.level = level

    def situation(self, seed: int, split: Split) -> Situation:
        """Raises ValueError for a split other than train and eval."""
        if split not in ("train", "eval"):
            raise ValueError(f"split is train or eval; got {split!r}")
        draw = random.Random(f"rockroll:code {self.level} {split} {seed}")
        while split_of(function := drawn(draw, LEVELS[self.level])) != split:
            pass
        shown = [list(case) for case in function.cases[:2]]
        examples = "\n".join(f"solve({case}) == {function(case)}" for case in shown)
        return Situation(
            instruction=(
                f"Write the file {FILE} in the current folder, with a Python function solve(n). It is given a list of "
                f"whole numbers n and returns a list: {function.text()}.\nFor example:\n{examples}"
            ),
            secret=function,
        )

    async def grade(self, sandbox: Sandbox, situation: Situation) -> float:
        """1.0 where every hidden case is right, types included; else 0.0."""
        function: Function = situation.secret
        path = situation.path(FILE)
        if not await sandbox.exists(path):
            return 0.0
        cases = [list(case) for case in function.cases]
        async with await sandbox.fork() as copy:
            argv = ["python3", "-I", "-c", DRIVER, path]
            run = await copy.execute(argv, cwd=situation.cwd, stdin=json.dumps(cases).encode(), timeout=TEST_SECONDS)
        try:
            answers = json.loads(run.stdout)
        except (ValueError, RecursionError):
            return 0.0
        return float(run.outcome == "ok" and _same(answers, [function(case) for case in cases]))


def solution(situation: Situation) -> str:
    """The reference: the contents of the file."""
    return situation.secret.source()


def drawn(draw: random.Random, steps: int) -> Function:
    """A function whose steps all matter: leaving one out gives another result for some case. Its cases are its own."""
    while True:
        chosen = [(step, draw.choice(step.k) if step.k else None) for step in draw.choices(STEPS, k=steps)]
        lists = [tuple(draw.randint(-20, 20) for _ in range(draw.randint(5, 10))) for _ in range(CASES - 2)]
        function = Function(tuple(chosen), (*lists, (), (7,)))
        right = [function(list(case)) for case in function.cases]
        if sum(map(bool, right)) < CASES // 2:
            continue  # hardly anything is left of the lists
        shorter = (Function((*chosen[:i], *chosen[i + 1 :]), ()) for i in range(steps))
        if all([other(list(case)) for case in function.cases] != right for other in shorter):
            return function


def split_of(function: Function) -> Split:
    digest = hashlib.sha256(function.text().encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % EVAL_SHARE == 0 else "train"


def _same(answers: Any, right: list[list[int]]) -> bool:
    """Equal, and whole numbers where those are: True is no 1 and 2.0 is no 2."""
    return json.dumps(answers) == json.dumps(right)
