"""The batches that an earlier run trained, read back from its records: training without an engine or a sandbox.

In: RUN_DIR/episodes/train-STEP.jsonl of a run, or of `rockroll rollout`. Out: each step's groups as they were, bit for
bit: ids, masks, log-probs, weight versions, rewards, turns. Leaves writing them to records.py.

Not in the records, and so not in the rows of a replay: what was sampled for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import msgspec
import yaml

from rockroll.controller.config import RunConfig
from rockroll.controller.source import Source, Taken
from rockroll.errors import UsageError
from rockroll.observe.metrics import Row
from rockroll.rollout.sample import Episode, Group
from rockroll.train.api import TrainBatch

_decode = msgspec.json.Decoder(Episode).decode
_SAMPLED_BY = ("temperature", "top_p")
"""Of the section rollout: the distribution that the recorded log-probs are of."""


class Recorded:
    """The records of one run. UsageError where they are not all that `config` wants to train."""

    def __init__(self, config: RunConfig) -> None:
        self.path = Path(config.replay)
        found = sorted(int(file.stem[6:]) for file in self.path.glob("episodes/train-*.jsonl"))
        if not found:
            raise UsageError(
                f"replay is the directory of a run whose episodes were recorded; {self.path} has no "
                "episodes/train-STEP.jsonl: name a run of `rockroll train` on a task, or of `rockroll rollout`"
            )
        lacking = sorted(set(range(1, config.steps + 1)) - set(found))
        if lacking:
            whole = lacking[0] - 1
            cure = f"add --set steps={whole}" if whole else "records.keep removed the first ones there"
            raise UsageError(
                f"replay trains steps 1 to {config.steps}, and {self.path} has no record of step {lacking[0]}; {cure}"
            )
        self._same(config)

    def _same(self, config: RunConfig) -> None:
        """The recorded log-probs are of the distribution that the recipe names."""
        try:
            recipe = yaml.safe_load((self.path / "recipe.yaml").read_text())
            then = {name: recipe["rollout"][name] for name in _SAMPLED_BY}
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            raise UsageError(
                f"replay needs {self.path / 'recipe.yaml'} as the run wrote it, to know how its tokens were sampled"
            ) from None
        for name, was in then.items():
            if was != (now := getattr(config.rollout, name)):
                raise UsageError(
                    f"replay: rollout.{name} is {now} and was {was} when the log-probs of {self.path} were recorded: "
                    f"add --set rollout.{name}={was}"
                )

    def groups(self, step: int) -> list[Group]:
        """What that step trained, in its order. UsageError where a record cannot be read."""
        file = self.path / "episodes" / f"train-{step:06d}.jsonl"
        try:
            episodes = [_decode(line) for line in file.read_bytes().splitlines()]
        except (OSError, msgspec.DecodeError) as error:
            raise UsageError(f"replay: {file} cannot be read: {error}; was it made by another rockroll?") from None
        return [
            Group(id, mine[0].task, mine[0].seed, mine, wasted_tokens=0, level=mine[0].level)
            for id, of_group in groupby(episodes, key=lambda episode: episode.group)
            for mine in [list(of_group)]
        ]


class Replayed(Source):
    """A Source: the recorded batches, step by step. batch: what the trainer is given of groups. row: what is to say
    about them, given the trainer's version."""

    phase = "replay"

    def __init__(
        self,
        recorded: Recorded,
        batch: Callable[[int, list[Group]], TrainBatch],
        row: Callable[[list[Group], int], Row],
    ) -> None:
        self._recorded, self._batch, self._row = recorded, batch, row

    async def take(self, step: int, version: int) -> Taken:
        groups = await asyncio.to_thread(self._recorded.groups, step)  # many megabytes of JSON
        return Taken(
            batch=self._batch(step, groups),
            row=self._row(groups, version),
            groups=groups,
            count=sum(len(group.episodes) for group in groups),
        )
