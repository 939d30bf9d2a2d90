"""`reasoning-gym:NAME`: one question and one answer, of Reasoning Gym's data sets.

In: a data set's name, as `chain_sum`, and its configuration as options. Out: an Env of one turn whose reward is the
data set's own score, 0 to 1. Leaves questions and scoring to Reasoning Gym.

A question is held out, by a hash of its text, for one in eight: training and evaluation share none.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import Any, Literal

from rockroll.env.library import imported, known_or_refused
from rockroll.env.own_random import OwnRandom

RULES = "Write your final answer inside <answer></answer>."
HELD_OUT = 8
TRIES = 200
"""Questions drawn for one of the right split: with so many in vain, there are hardly any."""
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGymEnv:
    """id: a data set's name. rules: said below each question; "" for none. options: of the data set's configuration,
    but for `seed` and `size`, which are the episode's.

    The answer is what stands last between <answer> and </answer>; without them the whole text.
    """

    def __init__(self, id: str, rules: str = RULES, split: Literal["train", "eval"] = "train", **options: Any) -> None:
        known_or_refused("reasoning-gym", id, self.names())
        if taken := options.keys() & {"seed", "size"}:
            raise ValueError(f"the episode decides {' and '.join(sorted(taken))} of a data set: leave it out")
        self._id, self._rules, self._split, self._options = id, rules, split, options
        self._random = OwnRandom()
        self._entry: dict[str, Any] | None = None
        try:
            self._draw(0)
        except AssertionError as error:  # its configurations check themselves so
            raise ValueError(str(error) or f"a wrong option among {', '.join(options)}") from error
        self._entry = None

    @staticmethod
    def names() -> list[str]:
        """Every data set."""
        imported("reasoning_gym", "reasoning-gym")
        return sorted(imported("reasoning_gym.factory", "reasoning-gym").DATASETS)

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        draw = random.Random(seed)
        for _ in range(TRIES):
            question = self._draw(draw.getrandbits(31))
            held_out = hashlib.sha256(question.encode()).digest()[0] % HELD_OUT == 0
            if held_out == (self._split == "eval"):
                return f"{question}\n{self._rules}".rstrip("\n"), {}
        raise ValueError(f"{self._id} has too few questions to keep some apart for {self._split}")

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._entry is None:
            raise RuntimeError("this episode is over: call reset before step")
        tagged = _TAGGED.findall(action)
        answer = (tagged[-1] if tagged else action).strip()
        entry, self._entry = self._entry, None
        with self._random.here():
            score = self._data.score_answer(answer=answer, entry=entry)
        return "", float(score), True, False, {"answer": entry["answer"]}

    def sample_random_action(self) -> str:
        """The reference answer half the time."""
        right = self._entry is not None and random.random() < 0.5
        return f"<answer>{self._entry['answer'] if right and self._entry else 0}</answer>"

    def _draw(self, seed: int) -> str:
        """The question of that seed, kept with its answer."""
        make = imported("reasoning_gym", "reasoning-gym").create_dataset
        with self._random.here():
            self._data = make(self._id, seed=seed, size=1, **self._options)
            self._entry = entry = self._data[0]
        return entry["question"]
