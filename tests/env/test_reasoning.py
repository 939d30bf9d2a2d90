"""`rockroll:arithmetic`, `rockroll:math`, `rockroll:code`: levels, references, random scores, splits, wrong answers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rockroll import rpc
from rockroll.env import code, maths
from rockroll.env.api import Action
from rockroll.env.arithmetic import Arithmetic
from rockroll.env.check import check
from rockroll.env.code import CodeTask
from rockroll.env.maths import Math, equal
from rockroll.env.registry import make
from rockroll.errors import UsageError
from rockroll.sandbox.on_demand import OnDemand


@pytest.mark.parametrize("name", ["rockroll:arithmetic", "rockroll:math", "rockroll:code"])
def test_they_keep_the_contract_of_a_task(name: str) -> None:
    # Their speed is measured below, in the processor's time.
    assert {finding.level for finding in check(name).findings if finding.name != "speed"} == {"ok"}


@pytest.mark.parametrize("name", ["arithmetic", "math", "code"])
def test_a_level_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="level is one of easy, medium, hard; got 'odd'"):
        make(f"rockroll:{name}", level="odd")


# ---- arithmetic ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tools", ["template", "text"])
@pytest.mark.parametrize(("level", "chance"), [("easy", 0.02), ("medium", 0.0), ("hard", 0.0)])
def test_arithmetic_s_reference_is_always_right_and_chance_hardly_ever(level: str, chance: float, tools: str) -> None:
    random.seed(4)
    earned = 0.0
    for seed in range(400):
        env = Arithmetic(level, tools)  # type: ignore[arg-type]
        env.reset(seed)
        over = False
        while not over:
            _, reward, ended, truncated, _ = env.step(env.sample_random_action())
            earned, over = earned + reward, ended or truncated
        env.reset(seed)
        actions = env.policy()
        steps = [env.step(action) for action in actions]
        assert [step[2] for step in steps] == [False] * (len(actions) - 1) + [True] and steps[-1][1] == 1.0
    assert earned / 400 == pytest.approx(chance, abs=0.02)


def test_a_call_is_worked_out_whatever_the_model_writes_into_it() -> None:
    env = Arithmetic("easy")
    text, info = env.reset(1)
    assert {tool["name"] for tool in info["tools"]} == {"add", "subtract", "multiply"} and "calc" not in text
    for arguments, says in (
        ('{"a": 2, "b": 3}', "6"),
        ('{"a": "2", "b": 3.0}', "6"),
        ('{"a": 2}', "error: the tools are"),
        ('{"a": 2, "b"', "error: the tools are"),
        ('{"a": true, "b": 1e999}', "error: the tools are"),
    ):
        env.reset(1)
        assert env.step(Action.of("", ("multiply", arguments)))[0].startswith(says)
    env.reset(1)
    assert env.step("9" * 5000)[1:3] == (0.0, True), "a number that nobody reads"


def test_what_stands_behind_a_point_is_no_answer_of_its_own() -> None:
    env = Arithmetic("easy")
    value = next(value for seed in range(100) if (value := eval(env.reset(seed)[0].splitlines()[-1])) > 0)
    for said, reward in ((f"12.{value}", 0.0), (f"{value}.5", 0.0), (f"{value}.00", 1.0), (f"It is {value}.", 1.0)):
        env.reset(next(seed for seed in range(100) if eval(env.reset(seed)[0].splitlines()[-1]) == value))
        assert env.step(said)[1:3] == (reward, True), said


def test_arithmetic_makes_more_than_20_000_steps_a_second() -> None:
    env, steps, began = Arithmetic("medium"), 0, time.process_time()
    for seed in range(500):
        env.reset(seed)
        over = False
        while not over:
            _, _, ended, truncated, _ = env.step(env.sample_random_action())
            over, steps = ended or truncated, steps + 1
    assert steps / (time.process_time() - began) > 20_000


# ---- math ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", maths.LEVELS)
def test_math_s_reference_is_always_right_and_the_splits_share_nothing(level: str) -> None:
    seen: dict[str, set[str]] = {"train": set(), "eval": set()}
    right = 0.0
    for split, problems in seen.items():
        env = Math(level, split=split)  # type: ignore[arg-type]
        for seed in range(150):
            problems.add(env.reset(seed)[0])
            assert env.step(env.solution())[1:3] == (1.0, True)
            right += env.step("\\boxed{7}")[1] if level == "easy" else 0.0
    assert not seen["train"] & seen["eval"] and right / 300 <= 0.02


@pytest.mark.parametrize(
    ("right", "said", "same"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("\\frac{1}{2}", " \\dfrac{2}{4}", True),
        ("\\frac{1}{2}", "1 /\t2", True),
        ("\\frac{1}{2}", "1\n/ 3", False),
        ("\\frac{1}{2}", "x = \\frac12", True),
        ("2\\sqrt{3}", "\\sqrt{12}", True),
        ("3 + \\sqrt{2}", "\\sqrt2+3", True),
        ("1234", "1,234", True),
        ("2\\sqrt{3}", "3.46", False),
        ("5", "", False),
        ("5", "\\frac{5}{0}", False),
        ("5", "9^{9^{9^{9}}}", False),
        ("5", "10000000!", False),
        ("5", "{{{{", False),
        ("5", "5" * 5000, False),
    ],
)
def test_an_answer_counts_by_its_value(right: str, said: str, same: bool) -> None:
    began = time.monotonic()
    assert equal(right, said) is same
    other: list[bool] = []
    thread = threading.Thread(target=lambda: other.append(equal(right, said)))
    thread.start()
    thread.join()
    assert other == [same], "in a thread, too"
    assert time.monotonic() - began < 20


def test_the_last_box_is_the_answer() -> None:
    assert maths.boxed("first \\boxed{1}, no: \\boxed{\\frac{1}{2}} it is") == "\\frac{1}{2}"
    assert maths.boxed("\\boxed{1") == maths.boxed("42") == ""


def test_problems_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"problem": f"What is {i} + 1?", "solution": f"one more\n#### {i + 1}"} for i in range(64)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    asked = {}
    for split in ("train", "eval"):
        env = Math(data=str(file), question="problem", answer="solution", rules="", split=split)
        asked[split] = {env.reset(seed)[0] for seed in range(200)}
        assert env.step(env.solution())[1] == 1.0
    assert asked["train"] and asked["eval"] and not asked["train"] & asked["eval"]
    with pytest.raises(UsageError, match=r"mine.jsonl:1: a problem has the keys question and answer; got problem, sol"):
        Math(data=str(file))


# ---- code ----------------------------------------------------------------------------------------------------------


def test_a_random_program_is_hardly_ever_right_and_the_splits_share_nothing() -> None:
    draw = random.Random(5)
    for level, chance in (("easy", 0.04), ("medium", 0.0)):
        task, hit = CodeTask(level), 0
        for seed in range(200):
            wanted = task.situation(seed, "train").secret
            tried = code.drawn(draw, code.LEVELS[level])
            hit += all(tried(list(case)) == wanted(list(case)) for case in wanted.cases)
        assert hit / 200 == pytest.approx(chance, abs=0.04)
    train, held = (
        {CodeTask("easy").situation(s, split).secret.text() for s in range(300)} for split in ("train", "eval")
    )
    assert train and held and not train & held


@pytest.mark.parametrize("level", code.LEVELS)
def test_the_reference_says_the_same_as_the_words_do(level: str, tmp_path: Path) -> None:
    for seed in range(5):
        situation = CodeTask(level).situation(seed, "eval")
        (tmp_path / "solution.py").write_text(code.solution(situation))
        cases = [list(case) for case in situation.secret.cases]
        argv = [sys.executable, "-I", "-c", code.DRIVER, str(tmp_path / "solution.py")]
        said = subprocess.run(argv, input=json.dumps(cases), capture_output=True, text=True, check=True).stdout
        assert json.loads(said) == [situation.secret(case) for case in cases]


async def test_hidden_cases_are_run_in_a_copy_and_judged_outside(node: rpc.Client) -> None:
    task = CodeTask("medium")
    situation = task.situation(1, "eval")
    shown = [list(case) for case in situation.secret.cases[:2]]
    known = {str(case): situation.secret(case) for case in shown}
    cheats = (
        f"def solve(n):\n    return {known!r}[str(n)]\n",  # the examples by heart
        "import os, sys\nprint('[[]]')\nsys.stdout.flush()\nos._exit(0)\n",
        "def solve(n):\n    while True: pass\n",
        "def solve(n)",
    )
    async with OnDemand().lease() as box:
        await box.mkdir("/work")
        assert await task.grade(box, situation) == 0.0, "nothing was written"
        await box.write_file("/work/solution.py", code.solution(situation))
        assert await task.grade(box, situation) == 1.0
        code_seconds, code.TEST_SECONDS = code.TEST_SECONDS, 2.0
        try:
            for cheat in cheats:
                await box.write_file("/work/solution.py", cheat)
                assert await task.grade(box, situation) == 0.0
        finally:
            code.TEST_SECONDS = code_seconds
