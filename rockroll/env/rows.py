"""Several environments of one kind, stepped one after another: one process's part of a VecEnv.

In: how many, a seed for each, an action for each. Out: lists of what they return, checked, with episodes begun anew as
`autoreset` says (api.py: VecEnv). Leaves several processes to vector.py.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Literal, TypeVar

from rockroll.env.api import Step, as_given, read_reset, read_step
from rockroll.env.registry import make
from rockroll.errors import EnvError, UsageError

Autoreset = Literal["next_step", "same_step", "disabled"]
Begun = tuple[list[Any], list[dict[str, Any]]]
"""Observations, infos."""
Stepped = tuple[list[Any], list[float], list[bool], list[bool], list[dict[str, Any]]]
"""Observations, rewards, terminated, truncated, infos."""
T = TypeVar("T")


class Rows:
    """`count` environments, the first of which is the `first` of `total`."""

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        count: int,
        autoreset: Autoreset = "next_step",
        first: int = 0,
        total: int | None = None,
    ) -> None:
        self._name, self._autoreset, self._first, self._total = name, autoreset, first, total or count
        self._envs = [make(name, **options) for _ in range(count)]
        for method in ("reset", "step"):
            if not callable(getattr(self._envs[0], method, None)):
                raise UsageError(f"{name} has no {method}: only an Env can be stepped")
        self.waits = any(inspect.iscoroutinefunction(getattr(self._envs[0], each)) for each in ("reset", "step"))
        """They have to be awaited, on an event loop."""
        self._seeds: list[int | None] = [None] * count
        self._over = [True] * count
        self._begun = False
        self._seen: list[Any] = [""] * count
        """The last observation of each."""

    def now(self, work: Coroutine[Any, Any, T], runner: asyncio.Runner) -> T:
        """The result of `reset` or `step`, without an event loop where none of them waits."""
        if self.waits:
            return runner.run(work)
        try:
            work.send(None)
        except StopIteration as end:
            return end.value
        work.close()
        raise EnvError(f"{self._name}: a reset or step that is to be awaited is written with `async def`")

    async def reset(self, seeds: Sequence[int | None], mask: Sequence[bool] | None = None) -> Begun:
        """Begin those in the mask, or all."""
        which = [i for i in range(len(self._envs)) if mask is None or mask[i]]
        if len(which) < len(self._envs) and not self._begun:
            raise EnvError(f"{self._name}: the first reset is of all: leave out mask")
        for i in which:
            self._seeds[i] = self._next(i) if mask is not None and seeds[i] is None else seeds[i]
        infos: list[dict[str, Any]] = [{} for _ in self._envs]
        for i, info in zip(which, await self._begin(which), strict=True):
            infos[i] = info
        self._begun = True
        return list(map(as_given, self._seen)), infos

    async def step(self, actions: Sequence[str]) -> Stepped:
        late = [i for i, over in enumerate(self._over) if over]
        if late and (self._autoreset != "next_step" or not self._begun):
            raise EnvError(f"{self._name}: environment {self._first + late[0]} is over: call reset before step")
        count = len(self._envs)
        rewards, terminated, truncated = [0.0] * count, [False] * count, [False] * count
        infos: list[dict[str, Any]] = [{} for _ in range(count)]
        on = [i for i in range(count) if not self._over[i]]
        ended: list[int] = []
        for i, value in zip(on, await self._all(on, [self._called(i, "step", actions[i]) for i in on]), strict=True):
            step = self._read(i, value)
            self._seen[i], rewards[i] = step.observation, step.reward
            terminated[i], truncated[i], infos[i] = step.terminated, step.truncated, _info(value)
            if step.over:
                self._over[i] = True
                ended.append(i)
        again = late if self._autoreset == "next_step" else ended if self._autoreset == "same_step" else []
        if again:
            finals = [(self._seen[i], infos[i]) for i in again]
            for i in again:
                self._seeds[i] = self._next(i)
            for i, info, (seen, final) in zip(again, await self._begin(again), finals, strict=True):
                same = self._autoreset == "same_step"
                infos[i] = {**info, "final_obs": as_given(seen), "final_info": final} if same else info
        return list(map(as_given, self._seen)), rewards, terminated, truncated, infos

    def close(self) -> None:
        for env in self._envs:
            if callable(shut := getattr(env, "close", None)):
                shut()

    def _next(self, i: int) -> int | None:
        seed = self._seeds[i]
        return None if seed is None else seed + self._total

    async def _begin(self, which: list[int]) -> list[dict[str, Any]]:
        """Begin an episode of each, with its seed; their infos."""
        infos = []
        begun = [self._called(i, "reset", seed=self._seeds[i]) for i in which]
        for i, value in zip(which, await self._all(which, begun), strict=True):
            self._seen[i], info = read_reset(value)
            self._over[i] = False
            infos.append(info)
        return infos

    def _called(self, i: int, method: str, *args: Any, **named: Any) -> Any:
        try:
            return getattr(self._envs[i], method)(*args, **named)
        except Exception as error:
            raise self._raised(i, method, error) from error

    async def _all(self, which: list[int], results: list[Any]) -> list[Any]:
        """The results, waited for together where they are to be."""
        if not self.waits or not any(map(inspect.isawaitable, results)):
            return results
        found = await asyncio.gather(*map(_value, results), return_exceptions=True)
        for i, value in zip(which, found, strict=True):
            if isinstance(value, Exception):
                raise self._raised(i, "reset or step", value) from value
        return found

    def _raised(self, i: int, method: str, error: Exception) -> EnvError:
        said = str(error) if isinstance(error, EnvError) else f"{method} raised {type(error).__name__}: {error}"
        return EnvError(f"{self._name}: environment {self._first + i}: {said}")

    def _read(self, i: int, value: Any) -> Step:
        try:
            return read_step(value)
        except EnvError as error:
            raise self._raised(i, "step", error) from error


def _info(value: tuple[Any, ...]) -> dict[str, Any]:
    return value[-1] if isinstance(value[-1], dict) else {}


async def _value(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
