"""Batches from a data set: shuffled by the run's seed, one position to go on from, some examples held out.

In: a DataConfig, the objective, a tokenizer. Out: TrainBatches of so many examples, and one of those held out. Leaves
files to examples.py, forms to forms.py, tokens to encode.py, learning to train/.

Passes follow one another without a gap: each has its own shuffle, drawn from the seed and the pass alone, so that a
number, the examples taken so far, is the whole position.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from rockroll.data.config import DataConfig
from rockroll.data.encode import encode
from rockroll.data.examples import Examples, find, where
from rockroll.data.forms import conversations
from rockroll.errors import UsageError
from rockroll.rollout.sample import Sample
from rockroll.rollout.seed import derive
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.train.api import TrainBatch, TrainSample

HELD_OUT_SHARE = 5
"""Of a data set without a held-out one of its own, at most one in so many is held out."""


class DataPosition(Struct, frozen=True):
    """Where a data set stands."""

    taken: int
    """Examples taken so far, skipped ones and earlier passes included."""
    examples: int
    """Examples of one pass: another number is another data set."""


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """One batch, and what is to say about it."""

    batch: TrainBatch
    examples: int
    skipped: int
    """Examples passed over for their length."""
    epoch: float
    """Passes done, this batch included."""


class DataSet:
    """The examples of a recipe, in two parts: those that are trained, in an order without end, and those held out."""

    def __init__(self, config: DataConfig, objective: Literal["sft", "dpo"], *, seed: int) -> None:
        """Raises UsageError where a file cannot be read, or where nothing is left to train."""
        self.objective: Literal["sft", "dpo"] = objective
        self.config, self._seed = config, seed
        self._examples = find(config.path, config.options)
        count, wanted = len(self._examples), config.held_out_examples
        self._held_out_of, self._held_out_path = self._examples, config.path
        if config.held_out and wanted:
            self._held_out_of, self._held_out_path = find(config.held_out, config.options), config.held_out
            self.held_out = list(range(min(wanted, len(self._held_out_of))))
        else:
            drawn = min(wanted, count // HELD_OUT_SHARE)
            self.held_out = sorted(random.Random(derive(seed, "held out")).sample(range(count), drawn))
        apart = frozenset(() if config.held_out else self.held_out)
        self._trained = array("q", (number for number in range(count) if number not in apart))
        self._order: tuple[int, array[int]] | None = None

    def __len__(self) -> int:
        """Examples of one pass."""
        return len(self._trained)

    def steps(self, steps: int) -> int:
        """Of so many steps those that `epochs` allows; the last one may begin another pass."""
        most = -(-self.config.epochs * len(self) // self.config.batch)
        return min(steps, most) if self.config.epochs else steps

    def number(self, place: int) -> int:
        """Which example comes at that place of the endless order."""
        epoch, at = divmod(place, len(self._trained))
        if self._order is None or self._order[0] != epoch:
            order = array("q", self._trained)
            random.Random(derive(self._seed, "data", epoch)).shuffle(order)
            self._order = (epoch, order)
        return self._order[1][at]

    def samples(self, tokenizer: ChatTokenizer, number: int, *, held_out: bool = False) -> list[list[Sample]]:
        """The samples of each conversation of one example. Raises UsageError that names it where it has a fault."""
        examples, path = (self._held_out_of, self._held_out_path) if held_out else (self._examples, self.config.path)
        at = where(examples, path, number)
        found = [
            encode(tokenizer, conversation, at)
            for conversation in conversations(_get(examples, number, at), self.objective, at)
        ]
        if self.objective == "dpo" and any(len(samples) != 1 for samples in found):
            raise UsageError(
                f"{at}: an answer for dpo is one sequence, and this model's chat template makes several of it; give a "
                "single message as chosen and as rejected"
            )
        return found


class Deck:
    """A DataSet being dealt: encoded for one model, from one position on."""

    def __init__(self, data: DataSet, tokenizer: ChatTokenizer, *, context: int) -> None:
        """context: tokens that the model takes."""
        self.data, self._tokenizer = data, tokenizer
        self._most = min(data.config.max_tokens or context, context)
        self._taken = 0

    @property
    def position(self) -> DataPosition:
        """Where to go on after the batch that was dealt last."""
        return DataPosition(self._taken, len(self.data))

    def go_on(self, position: DataPosition) -> None:
        """Raises UsageError where the data set is not the one that the position is of."""
        if position.examples != len(self.data):
            raise UsageError(
                f"--resume goes on with the same data set: {self.data.config.path} has {len(self.data)} examples to "
                f"train and had {position.examples}; put it back, or begin another run"
            )
        self._taken = position.taken

    def deal(self, step: int) -> Dealt:
        """The next batch. Raises UsageError where an example has a fault, or where a whole pass is too long."""
        dealt: list[list[list[Sample]]] = []
        skipped = 0
        while len(dealt) < self.data.config.batch:
            found = self.data.samples(self._tokenizer, self.data.number(self._taken))
            self._taken += 1
            if self._fits(found):
                dealt.append(found)
            elif (skipped := skipped + 1) >= len(self.data) and not dealt:
                raise UsageError(
                    f"data: every example of {self.data.config.path} is longer than {self._most} tokens; raise "
                    "data.max_tokens, or take a model with a longer context"
                )
        return Dealt(
            batch=_batch(step, dealt), examples=len(dealt), skipped=skipped, epoch=self._taken / len(self.data)
        )

    def held_out(self) -> TrainBatch | None:
        """All held-out examples that fit, as one batch; None where there are none."""
        found = [self.data.samples(self._tokenizer, number, held_out=True) for number in self.data.held_out]
        fitting = [samples for samples in found if self._fits(samples)]
        return _batch(0, fitting) if fitting else None

    def _fits(self, found: list[list[Sample]]) -> bool:
        return all(len(sample.ids) <= self._most for samples in found for sample in samples)


def _get(examples: Examples, number: int, at: str) -> dict[str, object]:
    try:
        return dict(examples[number])
    except UsageError:
        raise
    except Exception as error:  # whatever a user's data set raises
        raise UsageError(f"{at}: {type(error).__name__}: {error}") from error


def _batch(step: int, examples: list[list[list[Sample]]]) -> TrainBatch:
    """An example is a group, a conversation an episode; of two the first is the better one."""
    samples: list[TrainSample] = []
    episode = 0
    for group, found in enumerate(examples):
        for place, branches in enumerate(found):
            reward = float(len(found) > 1 and place == 0)
            samples += [
                TrainSample(ids=one.ids, mask=one.mask, episode=episode, group=group, reward=reward) for one in branches
            ]
            episode += 1
    return TrainBatch(step=step, samples=samples)
