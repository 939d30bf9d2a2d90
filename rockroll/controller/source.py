"""Where a step's batch comes from: sampled, or dealt from a data set. One interface for the loop.

In: a rollout's stream and the run's ledger, or a Deck of examples. Out: batches with what is to say about them, and
what a checkpoint needs to go on from there. Leaves sampling to rollout/, reading to data/, learning to train/.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from rockroll.controller.config import RunConfig
from rockroll.controller.run_dir import RunDir
from rockroll.data.source import DataSet, Deck
from rockroll.observe.metrics import Row
from rockroll.rollout.ledger import Ledger
from rockroll.rollout.sample import Group
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
    groups: Sequence[Group] = ()
    """To be recorded; none of a data set."""
    count: int
    """Episodes, or examples."""


class Source(Protocol):
    """again ─► open [ take ─► stepped ]*. saving and saved come around a checkpoint. Who inherits
    says what it takes, and of the rest only what it has something to do for."""

    phase: str
    """What the loop does while it waits for a batch."""

    def again(self) -> Iterator[tuple[int, TrainBatch]]:
        """(step, batch) of what was taken since the checkpoint and must be trained again as it was; before `open`.
        None of them: the same batches are taken again."""
        return iter(())

    @asynccontextmanager
    async def open(self, version: int, batches: int) -> AsyncIterator[None]:
        """Batches may be taken inside; nothing of it runs afterwards. version: of the weights that there are. batches:
        how many will be taken."""
        yield

    async def take(self, step: int, version: int) -> Taken:
        """The batch of that step. version: of the trainer's weights."""
        ...

    async def quiet(self) -> None:
        """Nothing is being sampled."""

    def stepped(self, version: int) -> None:
        """The batch is trained; weights `version` are where the next ones come from."""

    def saving(self, step: int) -> None:
        """A checkpoint of this step is about to be written."""

    def saved(self, step: int, *, oldest: int) -> None:
        """It is there. oldest: the first step that still has one."""


class Sampled(Source):
    """The groups of a rollout. stream: makes one. batch: what the trainer is given of groups. row: what is to say about
    them, given the trainer's version. checkpointed: told the lowest group that a run may still go on with."""

    phase = "rollout"

    def __init__(
        self,
        stream: Callable[..., Stream],
        ledger: Ledger,
        batch: Callable[[int, list[Group]], TrainBatch],
        row: Callable[[list[Group], int], Row],
        checkpointed: Callable[[int], None],
    ) -> None:
        self._make, self._ledger, self._batch, self._row = stream, ledger, batch, row
        self._checkpointed = checkpointed
        self._stream: Stream | None = None

    def again(self) -> Iterator[tuple[int, TrainBatch]]:
        for step, groups in self._ledger.past.trained():
            yield step, self._batch(step, groups)

    @asynccontextmanager
    async def open(self, version: int, batches: int) -> AsyncIterator[None]:
        async with self._make(version=version, batches=batches) as self._stream:
            yield

    async def take(self, step: int, version: int) -> Taken:
        groups = await self._open.take()
        return Taken(
            batch=self._batch(step, groups),
            row=self._row(groups, version),
            groups=groups,
            count=sum(len(group.episodes) for group in groups),
        )

    async def quiet(self) -> None:
        await self._open.quiet()

    def stepped(self, version: int) -> None:
        self._open.stepped(version)

    def saved(self, step: int, *, oldest: int) -> None:
        self._ledger.rotate(step)
        self._ledger.prune(oldest)
        self._checkpointed(self._ledger.floor)

    @property
    def _open(self) -> Stream:
        assert self._stream is not None, "a source is open between `open` and its end"
        return self._stream


class Written(Source):
    """The examples of a data set. run: keeps the place among them beside each checkpoint."""

    phase = "data"

    def __init__(self, deck: Deck, run: RunDir) -> None:
        self._deck, self._run = deck, run

    async def take(self, step: int, version: int) -> Taken:
        dealt = await asyncio.to_thread(self._deck.deal, step)  # encoding takes as long as it takes
        row: Row = {"data/epoch": dealt.epoch, "data/examples": dealt.examples, "data/skipped": dealt.skipped}
        return Taken(batch=dealt.batch, row=row, count=dealt.examples)

    def saving(self, step: int) -> None:
        self._run.put_position(step, self._deck.position)
