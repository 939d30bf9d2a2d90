"""Data sets of `rockroll:shell`, made as they are read: the right way of every goal, and right against wrong.

In: how many, which split. Out: examples by number, the same for ever. Leaves the goals and the ways to env/, tokens to
encode.py.
"""

from __future__ import annotations

import random
from typing import Any

from rockroll.agent import shell_agent
from rockroll.env import shell_interpreter as interpreter
from rockroll.env.api import Situation, Split
from rockroll.env.shell import Goal, ShellTask
from rockroll.env.shell_ways import HABITS, SOLUTIONS


def conversation(situation: Situation, commands: list[str]) -> list[dict[str, str]]:
    """The messages of an agent that gives these commands and then says that it is done."""
    said, files = situation.instruction, dict(situation.files)
    messages: list[dict[str, str]] = []
    for command in commands:
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": command}]
        result = interpreter.run(files, command)
        if result is None:
            raise ValueError(f"a demonstrated command is one that the interpreter knows; got {command!r}")
        files, output, code = result
        said = shell_agent.show(output, code)
    return [*messages, {"role": "user", "content": said}, {"role": "assistant", "content": "done"}]


class _Situations:
    """`size` situations of a split, by number."""

    def __init__(self, size: int = 4096, split: Split = "train") -> None:
        if size < 1:
            raise ValueError(f"a data set has at least one example; got size {size}")
        self._split: Split = split
        self._size, self._task = size, ShellTask()

    def __len__(self) -> int:
        return self._size

    def _situation(self, number: int) -> Situation:
        seed = random.Random(f"rockroll.data.shell {number}").getrandbits(62)
        return self._task.situation(seed, self._split)


class Demonstrations(_Situations):
    """`rockroll:shell_demonstrations`: conversations in which every goal is done right."""

    def __getitem__(self, number: int) -> dict[str, Any]:
        situation = self._situation(number)
        goal: Goal = situation.secret
        return {"messages": conversation(situation, SOLUTIONS[goal.kind](goal))}


class Preferences(_Situations):
    """`rockroll:shell_preferences`: to one goal, the first command of the right way and that of the bad habit."""

    def __getitem__(self, number: int) -> dict[str, Any]:
        situation = self._situation(number)
        goal: Goal = situation.secret
        chosen, rejected = SOLUTIONS[goal.kind](goal)[0], HABITS[goal.kind](goal)[0]
        return {"prompt": situation.instruction, "chosen": chosen, "rejected": rejected}
