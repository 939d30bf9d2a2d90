"""Tasks that keep the contract, and tasks that break one rule each: what `rockroll env check` is to find."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

from rockroll.env.api import Situation


class Guess:
    """Keeps every rule."""

    def __init__(self, highest: int = 9, split: str = "train") -> None:
        self.highest, self.over = highest, True

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        self.secret, self.tries, self.over = random.Random(seed).randint(0, self.highest), 0, False
        return f"{seed}: guess a digit from 0 to {self.highest}.", {}

    def step(self, action: str) -> tuple[Any, ...]:
        if self.over:
            raise RuntimeError("reset first")
        self.tries += 1
        right = action.strip() == str(self.secret)
        self.over = right or self.tries == 5
        return "right" if right else "wrong", float(right), right, self.tries == 5, {}

    def sample_random_action(self) -> str:
        return str(random.randint(0, self.highest))


class OldGuess(Guess):
    """Four values, and one `done`."""

    def step(self, action: str) -> tuple[Any, ...]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class AsyncGuess(Guess):
    async def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:  # type: ignore[override]
        return super().reset(seed)

    async def step(self, action: str) -> tuple[Any, ...]:  # type: ignore[override]
        return super().step(action)


class Unseeded(Guess):
    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        begun = super().reset(seed)
        self.secret = random.randint(0, 1 << 30)
        return f"{begun[0]} {self.secret}", {}


class GlobalSeed(Guess):
    """Right alone; beside another episode, each draws from the other's numbers."""

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        random.seed(seed)
        return super().reset(seed)

    def step(self, action: str) -> tuple[Any, ...]:
        observation, *rest = super().step(action)
        return f"{observation} {random.random()}", *rest


class Leaves(Guess):
    """An episode that is left in its middle leaves its score behind."""

    score = 0

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        if self.over:
            self.score = 0
        return super().reset(seed)

    def step(self, action: str) -> tuple[Any, ...]:
        self.score += 1
        return f"{super().step(action)[0]} {self.score}", 0.0, self.over, False, {}


class OneValue(Guess):
    def reset(self, seed: int | None = None) -> Any:
        return super().reset(seed)[0]


class NumbersShown(Guess):
    def step(self, action: str) -> tuple[Any, ...]:
        return 7, *super().step(action)[1:]


class WordForReward(Guess):
    def step(self, action: str) -> tuple[Any, ...]:
        return super().step(action)[0], "won", self.over, False, {}


class EndlessReward(Guess):
    def step(self, action: str) -> tuple[Any, ...]:
        return super().step(action)[0], 10**400, self.over, False, {}


class NumberForFlag(Guess):
    def step(self, action: str) -> tuple[Any, ...]:
        return super().step(action)[0], 0.0, int(self.over), False, {}


class Parses(Guess):
    def step(self, action: str) -> tuple[Any, ...]:
        int(action)
        return super().step(action)


class Endless(Guess):
    def step(self, action: str) -> tuple[Any, ...]:
        return "go on", 0.0, False, False, {}


class Pays(Guess):
    """Pays again for a step after the end."""

    def step(self, action: str) -> tuple[Any, ...]:
        return "done", 1.0, True, False, {}


class Hangs(Guess):
    def step(self, action: str) -> tuple[Any, ...]:
        time.sleep(3)
        return super().step(action)


class Spins(Guess):
    """Never comes back, and has started a program of its own."""

    def step(self, action: str) -> tuple[Any, ...]:
        subprocess.Popen(["sleep", "60"])
        while True:
            pass


class Dies(Guess):
    def step(self, action: str) -> tuple[Any, ...]:
        print("my last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
        return super().step(action)


class Pid(Guess):
    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        print("what is printed is no part of the conversation")
        super().reset(seed)
        return str(os.getpid()), {"system": "play"}


class Slow(Guess):
    def step(self, action: str) -> tuple[Any, ...]:
        time.sleep(0.008)
        return super().step(action)


class Same(Guess):
    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        return "guess", super().reset(seed)[1]


class Neither:
    pass


class Work:
    """A task in a sandbox whose splits are not apart, and whose files are text."""

    def situation(self, seed: int, split: str) -> Situation:
        return Situation(instruction=f"work {seed % 4}", files={"a": "text"})  # type: ignore[dict-item]

    async def grade(self, sandbox: Any, situation: Situation) -> float:
        return 1.0
