"""`rockroll:arithmetic`: sums that are too large for the head, and a calculator to call.

In: a seed; answers as text with a tool call in them or not. Out: an expression in words, the calculator's results, and
the reward 1 when the number that is answered at last is right. Leaves how a model's family writes tool calls to the
rollout room; a model without them says `calc 12 * 34` in a line of text (`tools: text`).

| level | expression | steps | random policy | reference |
|---|---|---|---|---|
| easy | one operation, numbers to 99 | 4 | 0.02 | 1.00 |
| medium | two, numbers to 999 | 6 | 0.00 | 1.00 |
| hard | four, numbers to 99,999 | 10 | 0.00 | 1.00 |

The random policy calls the calculator with two numbers that it has seen, or answers one of them. `policy` is the
reference. tests/env/test_reasoning.py checks the figures. An eighth of the expressions, by a hash, is for evaluation.
"""

from __future__ import annotations

import hashlib
import operator
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rockroll.env.api import Action, Split, called

EVAL_SHARE = 8
"""One expression in so many belongs to the eval split."""
OPERATIONS: dict[str, tuple[Callable[[int, int], int], str]] = {
    "+": (operator.add, "add"),
    "-": (operator.sub, "subtract"),
    "*": (operator.mul, "multiply"),
}
"""By sign: what it does, and the name of its tool."""
SIGNS = {name: sign for sign, (_, name) in OPERATIONS.items()}
DIGITS = 60
"""Of a number that the calculator takes: longer ones are refused, since their product takes time."""
TEXT_RULES = (
    "Work out the value. You may use a calculator: answer with a line like `calc 12 * 34` (or + or -) and you are told "
    "the result. When you know the value, answer with a line like `answer 408`."
)
TOOL_RULES = "Work out the value, with the tools for each operation. When you know it, answer with the number alone."
_CALC = re.compile(r"calc\s+(-?\d+)\s*([-+*])\s*(-?\d+)")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Level:
    operations: int
    highest: int
    steps: int
    """Then it is `truncated`."""


LEVELS = {"easy": Level(1, 99, 4), "medium": Level(2, 999, 6), "hard": Level(4, 99_999, 10)}


@dataclass(frozen=True)
class Sum:
    """A number, or an operation of two of these."""

    value: int
    text: str
    parts: tuple[Sum, str, Sum] | None = None


class Arithmetic:
    """GEM's `reset` and `step` over one expression.

    level: easy, medium or hard. tools: template, as the model's chat template writes calls; text, as `calc 1 + 2`.
    split: "train" and "eval" share no expression. rules: said before the expression, in place of rockroll's.
    """

    levels: ClassVar[dict[str, dict[str, Any]]] = {name: {"level": name} for name in LEVELS}

    def __init__(
        self,
        level: str = "easy",
        tools: Literal["template", "text"] = "template",
        split: Split = "train",
        rules: str | None = None,
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"level is one of {', '.join(LEVELS)}; got {level!r}")
        if tools not in ("template", "text"):
            raise ValueError(f"tools is template or text; got {tools!r}")
        self.level, self._tools, self._split = LEVELS[level], tools, split
        self._rules = rules if rules is not None else TEXT_RULES if tools == "text" else TOOL_RULES
        self._sum: Sum | None = None
        self._steps, self._over = 0, True
        self._seen: list[int] = []

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        draw = random.Random(seed)
        while True:
            self._sum = _drawn(draw, self.level.operations, self.level.highest)
            if split_of(self._sum.text) == self._split:
                break
        self._steps, self._over = 0, False
        self._seen = [abs(int(each)) for each in re.findall(r"\d+", self._sum.text)]
        said = f"{self._rules}\n{self._sum.text}".strip()
        return said, {"tools": _definitions()} if self._tools == "template" else {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._sum is None or self._over:
            raise ValueError("step comes after reset, and not after the end")
        self._steps += 1
        text, right, ended = self._answered(action, self._sum.value)
        truncated = not ended and self._steps >= self.level.steps
        self._over = ended or truncated
        return text, float(right), ended, truncated, {}

    def _answered(self, action: str, value: int) -> tuple[str, bool, bool]:
        """(what is said back, right, it is over)."""
        if (call := called(action)) is not None:
            given = call.arguments or {}
            sign, a, b = SIGNS.get(call.name), _whole(given.get("a")), _whole(given.get("b"))
            if sign is None or a is None or b is None:
                return "error: the tools are add, subtract and multiply, with whole numbers a and b", False, False
            return self._calculated(a, sign, b), False, False
        if self._tools == "text":
            lines = action.strip().splitlines()
            last = lines[-1] if lines else ""
            if found := _CALC.search(last):
                return self._calculated(_whole(found[1]), found[2], _whole(found[3])), False, False
            if "answer" not in last:
                return "say `calc A * B` or `answer N`", False, False
        numbers = _NUMBER.findall(action)
        if not numbers:
            return "answer with a number", False, False
        last, _, part = numbers[-1].replace(",", "").partition(".")
        right = not part.strip("0") and len(last) <= DIGITS and int(last) == value  # 12.5 is neither 12 nor 5
        return "right" if right else "wrong", right, True

    def _calculated(self, a: int | None, sign: str, b: int | None) -> str:
        if a is None or b is None:
            return f"error: a number has at most {DIGITS} digits"
        value = OPERATIONS[sign][0](a, b)
        self._seen.append(value)
        return str(value)

    # ---- who plays it --------------------------------------------------------------------------------------------

    def sample_random_action(self) -> str:
        """A call with two numbers that were seen, or one of them as the answer."""
        a, b = random.choice(self._seen), random.choice(self._seen)
        if random.random() < 0.5:
            return f"answer {a}"
        sign = random.choice(list(OPERATIONS))
        return self._said(a, sign, b)

    def policy(self) -> list[str]:
        """The actions that solve the expression: its operations from the inside out, then the answer."""
        assert self._sum is not None, "a policy comes after reset"
        actions: list[str] = []

        def work(part: Sum) -> None:
            if part.parts:
                left, sign, right = part.parts
                work(left)
                work(right)
                actions.append(self._said(left.value, sign, right.value))

        work(self._sum)
        return [*actions, f"answer {self._sum.value}"]

    def expert_action(self) -> str | None:
        """The next action of `policy`, for who has followed it so far."""
        actions = self.policy()
        return actions[min(self._steps, len(actions) - 1)]

    def _said(self, a: int, sign: str, b: int) -> str:
        if self._tools == "text":
            return f"calc {a} {sign} {b}"
        return Action.of("", (OPERATIONS[sign][1], f'{{"a": {a}, "b": {b}}}'))


def split_of(text: str) -> Split:
    digest = hashlib.sha256(text.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % EVAL_SHARE == 0 else "train"


def _drawn(draw: random.Random, operations: int, highest: int) -> Sum:
    if operations == 0:
        value = draw.randint(2, highest)
        return Sum(value, str(value))
    left = draw.randrange(operations)
    a, b = _drawn(draw, left, highest), _drawn(draw, operations - 1 - left, highest)
    sign = draw.choice(list(OPERATIONS))
    shown = [f"({each.text})" if each.parts else each.text for each in (a, b)]
    return Sum(OPERATIONS[sign][0](a.value, b.value), f"{shown[0]} {sign} {shown[1]}", (a, sign, b))


def _whole(given: Any) -> int | None:
    """The whole number in an argument: models write 12, 12.0 and "12"."""
    if isinstance(given, str) and re.fullmatch(r"\s*-?\d+\s*", given) and len(given.strip()) <= DIGITS:
        return int(given)
    if isinstance(given, float) and given.is_integer() and abs(given) < 2**53:
        return int(given)
    if isinstance(given, int) and not isinstance(given, bool) and abs(given) < 10**DIGITS:
        return given
    return None


_NUMBERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}


def _definitions() -> list[dict[str, Any]]:
    says = {"add": "a + b", "subtract": "a - b", "multiply": "a * b"}
    return [
        {"name": name, "description": f"{says[name]} of two whole numbers", "parameters": _NUMBERS} for name in SIGNS
    ]
