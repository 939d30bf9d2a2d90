"""Where a step's batch comes from: sampled, or dealt from a data set. One interface for the loop.

In: a rollout's Stream, or a Deck of examples. Out: batches with what is to say about them, and a position to go on
from. Leaves sampling to rollout/, reading to data/, and what is learnt from a batch to train/.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from rockroll.controller import statistics
from rockroll.controller.config import RunConfig
from rockroll.data.source import DataSet, Deck
from rockroll.observe.metrics import Row
from rockroll.rollout.sample import Episode, Group
from rockroll.rollout.stream import Stream
from rockroll.train.api import TrainBatch


def data_set(config: RunConfig) -> DataSet | None:
    """The recipe's data set, opened, where one is learnt from. UsageError where it cannot be read."""
    objective = config.train.objective
    if config.data is None or objective not in ("sft", "dpo"):
        return None
    return DataSet(config.data, objective, seed=config.seed)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One batch, ready to be trained."""

    batch: TrainBatch
    row: Row
    """What is known of it before training."""
    episodes: Sequence[Episode] = ()
    """To be recorded; none of a data set."""
    count: int
    """Episodes, or examples."""


class Source(Protocol):
    """Batches, one a step. Use as `async with`: nothing of it runs afterwards."""

    phase: str
    """What the loop does while it waits for a batch."""

    async def take(self, step: int, version: int) -> Taken:
        """The batch of that step. version: of the trainer's weights."""
        ...

    def stepped(self, version: int) -> None:
        """The batch is trained; weights `version` are where the next ones come from."""
        ...

    @property
    def position(self) -> Any:
        """Where to go on after the batch that was taken last: a Struct, for the checkpoint."""
        ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...


class Sampled:
    """The groups of a rollout. batch: what the trainer is given of them."""

    phase = "rollout"

    def __init__(self, stream: Stream, batch: Callable[[int, list[Group]], TrainBatch]) -> None:
        self._stream, self._batch = stream, batch

    async def take(self, step: int, version: int) -> Taken:
        groups = await self._stream.take()
        episodes = [episode for group in groups for episode in group.episodes]
        return Taken(
            batch=self._batch(step, groups),
            row=statistics.batch_row(groups, version),
            episodes=episodes,
            count=len(episodes),
        )

    def stepped(self, version: int) -> None:
        self._stream.stepped(version)

    @property
    def position(self) -> Any:
        return self._stream.position

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stream.__aexit__(*exc)


class Written:
    """The examples of a data set."""

    phase = "data"

    def __init__(self, deck: Deck) -> None:
        self._deck = deck

    async def take(self, step: int, version: int) -> Taken:
        dealt = await asyncio.to_thread(self._deck.deal, step)  # encoding takes as long as it takes
        row: Row = {"data/epoch": dealt.epoch, "data/examples": dealt.examples, "data/skipped": dealt.skipped}
        return Taken(batch=dealt.batch, row=row, count=dealt.examples)

    def stepped(self, version: int) -> None:
        pass

    @property
    def position(self) -> Any:
        return self._deck.position

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass
