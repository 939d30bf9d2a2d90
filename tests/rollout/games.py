"""Environments of the tests, named in recipes' way as `tests…games:Class`."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from rockroll.env.api import called


class Guess:
    """Say the seed's parity; three steps at most. A four-tuple, as older environments return."""

    closed = 0
    seeds: list[int] = []

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        assert seed is not None
        Guess.seeds.append(seed)
        self.left, self.answer = 3, "even" if seed // 2 % 2 == 0 else "odd"
        return f"parity of {seed // 2}?", {"system": "You guess."}

    def step(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        self.left -= 1
        right = action.strip() == self.answer
        return f"no, {self.left} left", float(right), right or not self.left, {}

    def close(self) -> None:
        Guess.closed += 1


class Endless:
    """Pays 0.5 a step and never ends, but by its own limit where there is one."""

    def __init__(self, limit: int = 0, split: str = "train") -> None:
        self.limit, self.split, self.steps = limit, split, 0

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        return f"go ({self.split})", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return "go", 0.5, False, self.steps == self.limit, {}


class Broken(Endless):
    """`how` says where and in which way."""

    made = 0

    def __init__(self, how: str, times: int = 10**9) -> None:
        super().__init__()
        Broken.made += 1
        self.how = how if Broken.made <= times else ""

    def reset(self, seed: int | None = None) -> Any:
        if self.how == "reset":
            raise KeyError("no such level")
        return "go" if self.how == "no info" else super().reset(seed)

    def step(self, action: str) -> Any:
        match self.how:
            case "step":
                raise ZeroDivisionError("by zero")
            case "nan":
                return "x", float("nan"), True, False, {}
            case "three":
                return "x", 1.0, True
            case "number":
                return 7, 1.0, True, False, {}
        return "x", 1.0, True, False, {}


class Slow(Endless):
    """Blocks its thread in every step."""

    threads: set[int] = set()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        Slow.threads.add(threading.get_ident())
        time.sleep(0.05)
        return "x", 1.0, True, False, {}


class Awaited(Guess):
    """Its methods wait, and others go on meanwhile."""

    async def reset(self, seed: int | None = None) -> Any:
        await asyncio.sleep(0.05)
        return super().reset(seed)

    async def step(self, action: str) -> Any:
        await asyncio.sleep(0.05)
        return super().step(action)


class Tooled:
    """Offers a tool, and pays for a call of it with the right argument, whose result is then said back."""

    calls: list[Any] = []

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
        tool = {"name": "look", "description": "Looks a word up.", "parameters": schema}
        return "Look up owl.", {"tools": [{"type": "function", "function": tool}]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        call = called(action)
        Tooled.calls.append((str(action), call))
        if call is None:
            return "bye", float("feathers" in action), True, False, {}
        return ("feathers" if call.arguments == {"word": "owl"} else "unknown"), 0.0, False, False, {}


class WrongTools(Tooled):
    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        return "x", {"tools": ["look"]}


class Codes:
    """Shows token ids, a word letter by letter, which no tokenizer says so; `wild` ones are no model's."""

    def __init__(self, wild: bool = False) -> None:
        self.wild = wild

    def reset(self, seed: int | None = None) -> Any:
        return [74, 71, 78, 78, 81], {"system": "Read the codes."}

    def step(self, action: str) -> Any:
        return (9, 10**6 if self.wild else 301, 7), 1.0, action == "stop", {}
