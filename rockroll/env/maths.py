"""`rockroll:math`: a problem, one answer in \\boxed{}, checked by its value and not by its letters.

In: a seed, or a file of problems; one answer as text. Out: the problem, then reward 1 where the answer's value is
right. Leaves reading LaTeX and comparing values to math-verify (`pip install "rockroll[math]"`), which is asked only
where the answer is no plain number.

| level | problems | random policy | reference |
|---|---|---|---|
| easy | three operations with numbers to 20 | 0.00 | 1.00 |
| medium | sums of fractions, linear equations, shares of a whole | 0.00 | 1.00 |
| hard | roots of quadratics, simplified roots, a derivative at a point | 0.00 | 1.00 |

The random policy answers a whole number from -20 to 20; `solution()` is the reference (tests/env/test_reasoning.py).
One problem in eight, by a hash of its text, is for evaluation.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from rockroll.env.api import Split
from rockroll.errors import UsageError

EVAL_SHARE = 8
"""One problem in so many belongs to the eval split."""
RULES = "Solve the problem. Give the final answer in \\boxed{}."
READ = 400
"""Characters of an answer that are read as mathematics; a longer one is wrong."""
SECONDS = 3
"""Of math-verify, to read an answer and to compare it."""
_PLAIN = re.compile(r"[-+]?\d{1,40}(?:\.\d{1,40}|\s*/\s*\d{1,40})?")
_FRAC = re.compile(r"([-+]?)\\d?frac\{(\d{1,40})\}\{(\d{1,40})\}")
_TOWER = re.compile(r"(?:\^|\*\*)\s*[{(]?[^})]*(?:\^|\*\*)|\d{3,}\s*!|(?:\^|\*\*)\s*[{(]?\s*-?\d{4,}")
"""What a computer algebra system may work on until the memory is used up: powers of powers, large factorials."""

Problem = tuple[str, str]
"""The question, and the answer as LaTeX."""


class Math:
    """GEM's `reset` and `step` over one problem.

    level: easy, medium or hard. data: a file of problems in place of drawn ones, one JSON object a line; question,
    answer: their keys (of an answer with "####" what follows it). split: "train" and "eval" share no problem.
    """

    levels: ClassVar[dict[str, dict[str, Any]]] = {name: {"level": name} for name in ("easy", "medium", "hard")}

    def __init__(
        self,
        level: str = "easy",
        *,
        data: str | None = None,
        question: str = "question",
        answer: str = "answer",
        rules: str = RULES,
        split: Split = "train",
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"level is one of {', '.join(LEVELS)}; got {level!r}")
        if level != "easy" or data is not None:
            _verifier()  # that it is missing shows before anything was started
        self._draw, self._rules, self._split = LEVELS[level], rules, split
        self._data = None if data is None else _problems(Path(data), question, answer, split)
        self._problem: Problem | None = None

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        draw = random.Random(seed)
        if self._data is not None:
            self._problem = draw.choice(self._data)
        else:
            while split_of((problem := self._draw(draw))[0]) != self._split:
                pass
            self._problem = problem
        return f"{self._rules}\n{self._problem[0]}".strip(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._problem is None:
            raise ValueError("step comes after reset")
        right = equal(self._problem[1], boxed(action))
        return "right" if right else "wrong", float(right), True, False, {}

    def sample_random_action(self) -> str:
        return f"\\boxed{{{random.randint(-20, 20)}}}"

    def solution(self) -> str:
        """The reference's answer."""
        assert self._problem is not None, "a solution comes after reset"
        return f"\\boxed{{{self._problem[1]}}}"

    def expert_action(self) -> str:
        """The reference's answer."""
        return self.solution()


def boxed(text: str) -> str:
    """What stands in the last \\boxed{}; "" where there is none."""
    at = text.rfind("\\boxed{")
    if at < 0:
        return ""
    depth, begin = 0, at + len("\\boxed{")
    for place in range(begin - 1, min(len(text), begin + READ + 1)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip()
    return ""


def equal(right: str, said: str) -> bool:
    """Whether an answer has the value of the right one. Whatever cannot be read is wrong."""
    said = said.strip().strip("$").strip()
    if not said or len(said) > READ:
        return False
    if said == right:
        return True
    a, b = _number(right), _number(said)
    if a is not None and b is not None:
        return a == b
    if _TOWER.search(said):
        return False
    parse, verify = _verifier()
    # Its limit is a signal, which the main thread alone may set.
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else None
    try:
        gold, given = (parse(f"${each}$", parsing_timeout=seconds, raise_on_error=False) for each in (right, said))
        return bool(verify(gold, given, timeout_seconds=seconds, raise_on_error=False))
    except Exception:  # noqa: BLE001  an algebra system meets a model's text: whatever it raises, this is no answer
        return False


def split_of(text: str) -> Split:
    digest = hashlib.sha256(text.encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % EVAL_SHARE == 0 else "train"


def _number(text: str) -> Fraction | None:
    text = text.strip().replace(",", "") if re.fullmatch(r"\s*[-+]?\d{1,3}(,\d{3})+\s*", text) else text.strip()
    if found := _FRAC.fullmatch(text):
        text = f"{found[1]}{found[2]}/{found[3]}"
    if not _PLAIN.fullmatch(text):
        return None
    try:
        return Fraction("".join(text.split()))  # Python 3.11 takes no space of any kind beside the stroke
    except ZeroDivisionError:
        return None


def _verifier() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from math_verify import parse, verify
    except ImportError:
        raise UsageError(
            'rockroll:math compares answers with math-verify, which is not installed; pip install "rockroll[math]"'
        ) from None
    return parse, verify


def _problems(path: Path, question: str, answer: str, split: Split) -> list[Problem]:
    """Those of that split. Raises UsageError with the line that is wrong."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UsageError(f"math data: {path} cannot be read ({error.strerror})") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise UsageError(f"{path}:{number}: a line is a JSON object; {error}") from None
        if row is None:
            continue
        if not isinstance(row, dict) or not {question, answer} <= row.keys():
            keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UsageError(f"{path}:{number}: a problem has the keys {question} and {answer}; got {keys}")
        if split_of(str(row[question])) == split:
            found.append((str(row[question]), str(row[answer]).rpartition("####")[2].strip()))
    if not found:
        raise UsageError(
            f"{path}: none of its {len(lines)} problems falls into the {split} split; it needs more of them"
        )
    return found


# ---- problems ------------------------------------------------------------------------------------------------------


def _easy(draw: random.Random) -> Problem:
    a, b, c, d = (draw.randint(2, 20) for _ in range(4))
    first, second = draw.choice("+-"), draw.choice("+-")
    value = a + (b * c if first == "+" else -b * c) + (d if second == "+" else -d)
    return f"What is {a} {first} {b} * {c} {second} {d}?", str(value)


def _medium(draw: random.Random) -> Problem:
    kind = draw.randrange(3)
    if kind == 0:
        a, b = (Fraction(draw.randint(1, 11), draw.randint(2, 12)) for _ in range(2))
        return f"What is {_latex(a)} + {_latex(b)}, as a fraction?", _latex(a + b)
    if kind == 1:
        a, b, c = draw.randint(2, 12), draw.randint(-20, 20), draw.randint(-20, 20)
        return f"Solve {a}x {_signed(b)} = {c} for x.", _latex(Fraction(c - b, a))
    part, whole = draw.choice([5, 10, 15, 20, 25, 30, 40, 60, 75]), draw.randint(2, 400)
    return f"What is {part} percent of {whole}?", _latex(Fraction(part * whole, 100))


def _hard(draw: random.Random) -> Problem:
    kind = draw.randrange(3)
    if kind == 0:  # x = p + sqrt(q)
        p, q = draw.randint(-9, 9), draw.randint(2, 60)
        b, c = -2 * p, p * p - q
        said = "x^2" + (f" {_signed(b)}x" if b else "") + (f" {_signed(c)}" if c else "")
        return f"What is the larger solution of {said} = 0?", _surd(p, 1, q)
    if kind == 1:
        factor, inside = draw.randint(2, 12), draw.choice([2, 3, 5, 6, 7, 10, 11, 13, 14, 15])
        said = f"\\sqrt{{{factor * factor * inside}}}"
        return f"Write {said} with the smallest whole number under the root.", _surd(0, factor, inside)
    a, b, c, at = (draw.choice([-1, 1]) * draw.randint(1, 9) for _ in range(4))
    said = f"{a}x^3 {_signed(b)}x^2 {_signed(c)}x"
    return f"What is the derivative of {said} at x = {at}?", str(3 * a * at * at + 2 * b * at + c)


def _signed(value: int) -> str:
    return f"{'+' if value >= 0 else '-'} {abs(value)}"


def _latex(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _surd(whole: int, factor: int, inside: int) -> str:
    """whole + factor·√inside, with squares taken out."""
    for root in range(math.isqrt(inside), 1, -1):
        if inside % (root * root) == 0:
            factor, inside = factor * root, inside // (root * root)
            break
    if inside == 1:
        return str(whole + factor)
    part = f"{'' if factor == 1 else factor}\\sqrt{{{inside}}}"
    return f"{whole} + {part}" if whole else part


LEVELS: dict[str, Callable[[random.Random], Problem]] = {"easy": _easy, "medium": _medium, "hard": _hard}
