"""`rockroll:shell_quiz`: one goal of `rockroll:shell`, one command, one reward, without a sandbox.

In: a seed; the command as text. Out: the goal in words, then reward 1.0 where the command would leave the folder as it
should be, else 0.0. A command is carried out on a dict of files (shell_interpreter.py), never by this host; one that is
not understood earns 0.0. Leaves talking to a model to the rollout room.

The shape of RL with verifiable rewards: a question, an answer, a checker.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from rockroll.env import shell_interpreter
from rockroll.env.api import Situation, Split
from rockroll.env.shell import ShellTask
from rockroll.env.shell_ways import SOLUTIONS

ONE_COMMAND = ("create", "append", "copy")
"""Goals that one command can reach without looking first."""


class ShellQuiz:
    """GEM's `reset` and `step` over one goal.

    kinds: of goals. split: "train" and "eval" share no goal.
    """

    levels: ClassVar[dict[str, dict[str, Any]]] = {
        "easy": {"kinds": ["create"]},
        "medium": {"kinds": ["create", "append"]},
        "hard": {"kinds": list(ONE_COMMAND)},
    }

    def __init__(self, kinds: Sequence[str] = ONE_COMMAND, split: Split = "train") -> None:
        if not kinds or not set(kinds) <= set(ONE_COMMAND):
            raise ValueError(f"kinds are some of {', '.join(ONE_COMMAND)}; got {', '.join(kinds) or 'none'}")
        self._kinds = frozenset(kinds)
        self._split: Split = split
        self._situation: Situation | None = None

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        rng, task = random.Random(seed), ShellTask()
        while True:
            situation = task.situation(rng.getrandbits(62), self._split)
            if situation.secret.kind in self._kinds:
                break
        self._situation = situation
        return situation.instruction, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._situation is None:
            raise ValueError("step comes after reset")
        after = shell_interpreter.run(self._situation.files, action.strip())
        right = after is not None and after[0] == self._situation.secret.expected
        return "right" if right else "wrong", float(right), True, False, {}

    def expert_action(self) -> str | None:
        """The command that does it."""
        assert self._situation is not None, "an action comes after reset"
        goal = self._situation.secret
        return SOLUTIONS[goal.kind](goal)[0]

    def sample_random_action(self) -> str:
        """A command of the right form for one of the goals, with words that stand in this one's."""
        assert self._situation is not None, "an action comes after reset"
        words = re.findall(r"[a-z]+", self._situation.instruction)
        first, second, third = (random.choice(words) for _ in range(3))
        return random.choice((f"echo {first} {second} > {third}", f"echo {first} >> {second}", f"cp {first} {second}"))
