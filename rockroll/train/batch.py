"""Samples in, tensors of a bounded size out: every trained token once, little padding.

In: samples (ids, mask, log-probs) and an advantage for each. Out: rows cut to what training needs, a plan of
micro-batches per rank, and their tensors. Pure. Leaves the forward and the loss to others.

Rows are padded on the right and the model is causal, so no real token ever attends to padding and no attention mask
is needed: that keeps the fast attention kernels and makes the result independent of what shares a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rockroll.errors import TrainError


class Masked(Protocol):
    """What a row is made of: `api.TrainSample`, or anything with ids and a mask."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def mask(self) -> list[bool]: ...


@dataclass(slots=True)
class Row:
    """One sequence, without the tail that trains nothing. T input tokens, n ≤ T trained ones."""

    inputs: Tensor
    """[T] int64: the ids before the last trained one."""
    positions: Tensor
    """[n] int64: inputs whose next token is trained."""
    targets: Tensor
    """[n] int64: those next tokens."""
    behaviour: Tensor
    """[n] float32: the engine's log-probs of the targets."""
    advantages: Tensor
    """[n] float32; for a critic, the returns."""
    sample: int = 0
    """Which sample of the batch this is."""
    episode: int = 0
    """Which episode it is a branch of."""
    weight: float = 0.0
    """What each of its tokens weighs in the loss of the update under way."""
    old: Tensor | None = None
    """[n] float32: the trainer's own log-probs at the step's start, where they are needed before the loss; a critic's
    values."""
    reference: Tensor | None = None
    """[n] float32: the start model's log-probs, where the loss is told how far it went."""
    kept: Tensor | None = None
    """[n] bool: what a filter left; None: all."""

    @property
    def counted(self) -> int:
        """Tokens that enter the loss."""
        return len(self.targets) if self.kept is None else int(self.kept.sum())

    def __len__(self) -> int:
        return len(self.inputs)


def make_row(
    sample: Masked,
    *,
    logprobs: Sequence[float] | None = None,
    advantage: float = 0.0,
    number: int = 0,
    episode: int = 0,
    vocabulary: int,
    context: int,
) -> Row | None:
    """The row of one sample, or None where nothing in it is trained.

    Raises TrainError for lists of unequal lengths, an id outside the vocabulary, a sequence over the context, or a
    trained first token (nothing comes before it that could predict it).
    """
    ids, mask = torch.tensor(sample.ids, dtype=torch.int64), torch.tensor(sample.mask, dtype=torch.bool)
    if len(mask) != len(ids) or (logprobs is not None and len(logprobs) != len(ids)):
        raise TrainError(
            f"a sample's lists must be equally long; got {len(ids)} ids, {len(mask)} mask"
            + (f", {len(logprobs)} logprobs" if logprobs is not None else "")
        )
    trained = mask.nonzero()[:, 0]
    if len(trained) == 0:
        return None
    if bool(mask[0]):
        raise TrainError("a sample's first token cannot be trained, nothing predicts it; give it a prompt of one token")
    last = int(trained[-1])
    if last + 1 > context:
        raise TrainError(f"a sample must fit the model's context of {context} tokens; got {last + 1}: sample less")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise TrainError(
            f"token ids must be 0 to {vocabulary - 1}; got {low if low < 0 else high}: is the tokenizer the model's?"
        )
    behaviour = torch.zeros(len(trained)) if logprobs is None else torch.tensor(logprobs, dtype=torch.float32)[trained]
    if not bool(torch.isfinite(behaviour).all()):
        raise TrainError(f"log-probs of trained tokens must be finite; got {behaviour.tolist()}")
    return Row(
        ids[:last],
        trained - 1,
        ids[trained],
        behaviour,
        torch.full((len(trained),), advantage),
        sample=number,
        episode=episode,
    )


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Share rows among ranks by tokens: the longest first, to whom has least. Returns row indices per rank."""
    hands: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        to = load.index(min(load))
        hands[to].append(i)
        load[to] += lengths[i]
    return hands


MICRO_BATCH_PRICE = 64
"""What a forward and backward costs beside its tokens, in tokens: 70 were measured on a CPU with the tiny model. It
decides between a little padding and one more micro-batch. Batches of 32 to 4,096 multi-turn episodes with a heavy tail
are left with 0 to 1.6 % padding where filling each micro-batch up left 0 to 63 %."""


TRIED = 6
"""Numbers of micro-batches a rank that are tried beside dealing row by row: the smaller they are, the better shared."""


def pack(lengths: Sequence[int], rows: Sequence[int], budget: int) -> list[list[int]]:
    """Micro-batches with at most `budget` tokens, padding included, the longest first; a longer row goes alone.

    Of all ways to share the rows it takes the cheapest, by tokens computed and MICRO_BATCH_PRICE a micro-batch. Rows
    sorted by length need no other order: swapping two rows of unlike micro-batches never makes either narrower.
    """
    order = sorted(rows, key=lambda i: (-lengths[i], i))
    cost, begin = [0], [0]  # of the first n rows: the least cost, and where their last micro-batch begins
    for end in range(1, len(order) + 1):
        first = end - 1
        best, at = cost[first] + lengths[order[first]], first
        while first > 0 and (end - first + 1) * lengths[order[first - 1]] <= budget:
            first -= 1
            if (found := cost[first] + (end - first) * lengths[order[first]]) <= best:
                best, at = found, first
        cost.append(best + MICRO_BATCH_PRICE)
        begin.append(at)
    packs: list[list[int]] = []
    end = len(order)
    while end:
        packs.append(order[begin[end] : end])
        end = begin[end]
    return packs[::-1]


def plan(lengths: Sequence[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """[rank][micro-batch] -> row indices. Every row once; every rank has the same number, as collectives need.

    A rank that has fewer gets empty ones: they run, and weigh nothing. Of several plans it is the one whose last rank
    is done first, in which no rank has more than one row's tokens over another.
    """
    plans = [[pack(lengths, hand, budget) for hand in deal(lengths, ranks)]]
    if ranks > 1:
        plans += _dealt_by_micro_batch(lengths, ranks, budget)
    per_rank = min(plans, key=lambda per_rank: _seen(lengths, per_rank))
    most = max(map(len, per_rank))
    return [packs + [[] for _ in range(most - len(packs))] for packs in per_rank]


def _dealt_by_micro_batch(lengths: Sequence[int], ranks: int, budget: int) -> Iterator[list[list[list[int]]]]:
    """Plans that pack all rows first and share the micro-batches: rows dealt one by one leave every rank every
    `ranks`-th length, and so more padding. Micro-batches are made small enough that each rank gets a few alike."""
    rows = range(len(lengths))
    whole = sum(_cost(lengths, pack) for pack in pack(lengths, rows, budget))
    fewest = max(1, -(-whole // (ranks * budget)))
    for each in range(fewest, fewest + TRIED):
        packs = pack(lengths, rows, min(budget, whole // (ranks * each) + 1))
        hands: list[list[list[int]]] = [[] for _ in range(ranks)]
        load = [0] * ranks
        for chosen in sorted(packs, key=lambda pack: -_cost(lengths, pack)):
            to = load.index(min(load))
            hands[to].append(chosen)
            load[to] += _cost(lengths, chosen)
        tokens = [sum(lengths[i] for pack in hand for i in pack) for hand in hands]
        if max(tokens) - min(tokens) <= max(lengths, default=0):
            yield hands


def _cost(lengths: Sequence[int], pack: Sequence[int]) -> int:
    return len(pack) * max(lengths[i] for i in pack) + MICRO_BATCH_PRICE


def _seen(lengths: Sequence[int], per_rank: list[list[list[int]]]) -> tuple[int, int]:
    """(what the rank with the most computes, what all compute)."""
    costs = [sum(_cost(lengths, pack) for pack in packs) for packs in per_rank]
    return max(costs), sum(costs)


def padding_fraction(lengths: Sequence[int], planned: list[list[list[int]]]) -> float:
    """The share of computed tokens that are padding, over all ranks."""
    computed = sum(len(rows) * max(lengths[i] for i in rows) for packs in planned for rows in packs if rows)
    return 1 - sum(lengths) / computed if computed else 0.0


@dataclass(slots=True)
class MicroBatch:
    """Tensors of one forward: B rows padded to T, n trained tokens in row order."""

    inputs: Tensor
    """[B, T] int64"""
    index: Tensor
    """[n] int64: places in the flattened [B·T] whose next token is trained."""
    targets: Tensor
    """[n] int64"""
    behaviour: Tensor
    """[n] float32"""
    advantages: Tensor
    """[n] float32"""
    row: Tensor
    """[n] int64: which of the B rows a token is of."""
    weights: Tensor
    """[n] float32: what each token's loss weighs; 0 where a filter dropped it."""
    old: Tensor | None
    """[n] float32"""
    reference: Tensor | None
    """[n] float32"""
    empty: bool
    """It stands in for a missing one: one token that weighs nothing."""

    def to(self, device: torch.device) -> MicroBatch:
        if device.type == "cpu":
            return self
        old, reference = (t if t is None else t.to(device) for t in (self.old, self.reference))
        tensors = (self.inputs, self.index, self.targets, self.behaviour, self.advantages, self.row, self.weights)
        return MicroBatch(*(t.to(device) for t in tensors), old=old, reference=reference, empty=self.empty)


def collate(rows: Sequence[Row]) -> MicroBatch:
    """The tensors of these rows; of none, a stand-in with one token for a rank that has no more."""
    if not rows:
        zero, one = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
        return MicroBatch(zero[None], zero, zero, one, one, zero, one * 0, old=one, reference=None, empty=True)
    width = max(map(len, rows))
    inputs = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        inputs[i, : len(row)] = row.inputs
    olds = [row.old for row in rows if row.old is not None]
    references = [row.reference for row in rows if row.reference is not None]
    return MicroBatch(
        inputs,
        torch.cat([row.positions + i * width for i, row in enumerate(rows)]),
        torch.cat([row.targets for row in rows]),
        torch.cat([row.behaviour for row in rows]),
        torch.cat([row.advantages for row in rows]),
        torch.cat([torch.full((len(row.targets),), i) for i, row in enumerate(rows)]),
        torch.cat(
            [torch.full((len(row.targets),), row.weight) * (1 if row.kept is None else row.kept) for row in rows]
        ),
        old=torch.cat(olds) if len(olds) == len(rows) else None,
        reference=torch.cat(references) if len(references) == len(rows) else None,
        empty=False,
    )
