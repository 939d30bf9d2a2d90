"""Demonstrations of any environment that has a reference solver, made as they are read.

In: the environment's name and options, how many, how noisy. Out: examples by number, the same for ever; or the same as
a .jsonl file. Leaves playing to rollout/own_play.py, which renders a conversation as an episode's dialogue does, and
tokens to encode.py.

A data set by number, and not only a file: a recipe then says in one place what its model imitates, and is one command.
The file (`rockroll env demos`) is for a look at it, for a solver that takes long, and for other trainers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from rockroll.append import unwritable
from rockroll.errors import UsageError
from rockroll.rollout.config import TaskConfig
from rockroll.rollout.own_play import Played, play
from rockroll.rollout.seed import derive
from rockroll.rollout.tasks import SEED_BITS, EnvTask, resolve

TRIES = 100
"""Situations that are played for one demonstration; where noise spoils nearly all of them it is too strong."""


class Demonstrations:
    """`rockroll:demonstrations`: conversations in which the environment's solver passes, in training's situations.

    env, options: as in a recipe's `task`. size: examples of the data set. noise: the share of answers that are random
    ones; an episode that they spoil is left out, and another one is in its place. max_turns: longer ones are left out.
    seed: another one is another data set.
    """

    def __init__(
        self,
        env: str,
        options: Mapping[str, Any] | None = None,
        size: int = 4096,
        noise: float = 0.0,
        max_turns: int = 64,
        seed: int = 0,
    ) -> None:
        """Raises UsageError for an environment without a solver, or options out of range."""
        if size < 1:
            raise ValueError(f"a data set has at least one example; got size {size}")
        if not 0 <= noise < 1:
            raise ValueError(f"noise is the share of random answers, from 0 to below 1; got {noise}")
        task = resolve(TaskConfig(env=env, options=dict(options or {}), max_turns=max_turns), None)
        assert isinstance(task, EnvTask)
        if (split := (options or {}).get("split", "train")) != "train":
            raise UsageError(f"demonstrations are of training's situations alone; leave out the option split: {split}")
        self._task, self._size, self._noise, self._seed = task, size, noise, seed
        self.tried = 0
        """Episodes played so far; more than were read where some were spoilt."""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, number: int) -> dict[str, Any]:
        return _at_once(self.example(number))

    async def example(self, number: int) -> dict[str, Any]:
        """{"messages": […]}, as an sft data set reads it. Raises UsageError where the solver does not pass."""
        for attempt in range(TRIES):
            self.tried += 1
            played = await self._played(number, attempt)
            if played.passed:
                return {"messages": played.messages}
        raise UsageError(
            f"of {TRIES} episodes of {self._task.name} played by its solver with noise {self._noise:g} none passed; "
            f"take less noise, or raise max_turns (now {self._task.config.max_turns})"
        )

    async def _played(self, number: int, attempt: int) -> Played:
        names = ("demonstration", self._seed, number, attempt)
        seed, draws = derive(*names, bits=SEED_BITS), derive(*names, "noise")
        return await play(self._task, seed, "train", noise=self._noise, draws=draws)


async def write(demonstrations: Demonstrations, path: Path, tell: Callable[[int], None] = lambda _: None) -> None:
    """All of them, one JSON object a line; `tell` hears how many there are. The file appears when it is whole.

    Raises HostError where it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as lines:
            for number in range(len(demonstrations)):
                lines.write(msgspec.json.encode(await demonstrations.example(number)) + b"\n")
                tell(number + 1)
        aside.rename(path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        aside.unlink(missing_ok=True)


def _at_once(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """What it returns, run to its end here: an event loop may be running in this thread already."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise UsageError(
        "an environment whose reset or step waits cannot be demonstrated while a run reads it; write a file with "
        "rockroll env demos, and name that as data.path"
    )
