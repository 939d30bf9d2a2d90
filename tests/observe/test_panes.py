"""The live terminal's panes: recorded states as text, beside this file in panes.txt.

Made anew, to be read before it is committed: python -m tests.observe.test_panes > tests/observe/panes.txt
"""

from __future__ import annotations

import io
import logging
import random
import re
from pathlib import Path

import pytest
from rich.console import Console

from rockroll.observe.display import Display
from rockroll.observe.panes import Panes
from rockroll.observe.status import Status

TEXTS = Path(__file__).with_name("panes.txt")
SIZES = [(40, 24), (40, 8), (60, 40), (80, 14), (120, 40), (120, 16)]
LOG = [
    "10:00:01 INFO rockroll.engine.pool: replica 1 is back",
    "10:00:05 WARNING rockroll.rollout.guards: train-40-2 was replaced: the box was killed from outside",
]
ANSWERS = ["ls -la\ncat notes", "cat notes/todo.txt | grep \x1b[31m[bold]x > out.txt && echo done", "echo hi"]


def begun() -> Status:
    """A run that has just begun."""
    return Status("lake", 20, started=90.0)


def under_way() -> Status:
    """In the middle of step 7, with a replica that was replaced and sandboxes on two nodes."""
    status = Status("quickstart", 26, step=7, started=0.0, version=6, running=12, tokens_per_s=3912.4)
    status.curve, status.evals = [0.2, 0.25, 0.31, 0.4, 0.52, 0.66, 0.7], [(0, 0.238)]
    status.outcomes, status.times = {"ok": 800, "truncated": 96, "timeout": 0}, {"rollout": 31.0, "train": 9.5}
    status.phase, status.wanted, status.done = "rollout", 128, 77
    status.engines = lambda: {"engine/replicas": 2, "engine/restarts": 1, "engine/reissued": 3}
    for i in range(14):
        id = f"train-{40 + i // 8}-{i % 8}-0-{300 + i}"
        status.flights.began(id, "shell")
        status.flights.all()[-1].began = 60.0 + i
        if i < 12:
            status.flights.placed(id, "0123456789ab", "alpha" if i % 3 else "beta")
        if i < 10:
            status.flights.answered(id, ANSWERS[i % 3])
    return status


def long() -> Status:
    """After 500 steps, between two episodes."""
    draw = random.Random(7)
    status = Status("sokoban", 1000, step=501, started=-7200.0, version=500)
    status.curve = [min(1.0, max(-0.2, i / 600 + draw.uniform(-0.1, 0.1))) for i in range(500)]
    status.evals = [(0, 0.05), (250, 0.31), (500, 0.77)]
    status.phase = "train"
    return status


STATES = {"begun": (begun, []), "under way": (under_way, LOG), "long": (long, [])}


def drawn(state: str, width: int, height: int) -> str:
    make, log = STATES[state]
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(Panes(make(), log, 100.0))
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def written() -> str:
    parts = [(state, *size) for state in STATES for size in SIZES]
    return "".join(f"=== {state}, {width}x{height}\n{drawn(state, width, height)}" for state, width, height in parts)


def test_every_recorded_state_is_drawn_as_it_was_looked_at() -> None:
    assert written() == TEXTS.read_text()


@pytest.mark.parametrize("state", STATES)
def test_no_size_is_overrun(state: str) -> None:
    for width in (20, 39, 40, 59, 60, 61, 80, 99, 100, 101, 133, 250):
        for height in (3, 5, 8, 11, 14, 20, 24, 50):
            lines = drawn(state, width, height).splitlines()
            assert len(lines) <= height - 1 and max(map(len, lines)) <= width, (width, height)


def test_nothing_that_was_said_drives_the_terminal() -> None:
    status = under_way()
    status.flights.answered(status.flights.all()[0].id, "\x1b]0;owned\x07 [red]rm -rf /[/red]\r\n second")
    status.name = "na\x1bme"
    out = io.StringIO()
    Console(file=out, width=200, height=40, force_terminal=True, color_system=None).print(
        Panes(status, ["10:00 WARNING a\x1b[2Jb"], 100.0)
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "\x1b" not in plain and "\x07" not in plain and "[red]rm -rf /[/red]" in plain


def test_a_terminal_has_panes_with_the_log_and_lasting_lines_above_and_elsewhere_only_lines() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, height=40, force_terminal=True, color_system=None)
    with Display(under_way(), console) as display:
        logging.getLogger("rockroll.test").warning("a box was \x1b[31m replaced")
        display.line("step    1")
    assert "rockroll · quickstart" in out.getvalue() and "step    1\n" in out.getvalue()
    assert "WARNING rockroll.test: a box was \\x1b[31m replaced" in out.getvalue()
    plain = io.StringIO()
    with Display(under_way(), Console(file=plain, width=120)) as display:
        logging.getLogger("rockroll.test").warning("nowhere")
        display.line("step    1")
    assert plain.getvalue() == "step    1\n" and not any(
        type(handler).__name__ == "_Tail" for handler in logging.getLogger().handlers
    )


def test_ended_episodes_are_gone_and_those_of_a_node_are_counted() -> None:
    status = under_way()
    assert status.flights.by_node() == {"alpha": 8, "beta": 4}
    for flight in status.flights.all():
        status.flights.ended(flight.id)
    status.flights.ended("never began")
    assert status.flights.all() == [] and status.flights.by_node() == {}


if __name__ == "__main__":
    print(written(), end="")
