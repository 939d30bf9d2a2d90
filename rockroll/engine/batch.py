"""Continuous batching: requests join and leave between any two steps.

In: sequences to finish, in the order they came. Out, per `step`: one forward of the model over one new token of every
sequence under way and the prompts of newcomers, and the sequences that ended. Belongs to one thread. Leaves waiting,
futures and weights to transformers_engine.py.

    add ──► waiting ──► active (a row of `Slots`) ──► finished: its keys and values are kept for a next turn
                └──────────── abort ────────────► gone, the row is free in the next step

A newcomer computes only what no other has: the longest prefix that it shares with an active row or with a kept
sequence is copied, not computed. Of one group's equal prompts, arriving together, one is computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rockroll.engine.prefixes import Prefixes
from rockroll.engine.rows import Rows, Sequence
from rockroll.engine.sampling import sample, uniforms
from rockroll.engine.slots import Kept, Segment, Slots, Step

_LEAST_SHARED = 16
"""Shorter prefixes than this are computed: the copies of every layer would cost as much."""


class Batch(Rows):
    """Of at most `max_batch` rows."""

    def __init__(
        self,
        model: Any,
        slots: Slots,
        *,
        max_batch: int,
        context_length: int,
        prefill_tokens: int,
        prefix_cache: int,
        prefix_cache_bytes: int,
    ) -> None:
        super().__init__(max_batch)
        self.version = 0
        self._model = model
        self._slots = slots
        self._context_length = context_length
        self._prefill_tokens = prefill_tokens
        self._device: torch.device = model.device
        self._dtype: torch.dtype = model.dtype
        self._active_prefixes = Prefixes(max_batch)
        self._kept_prefixes = Prefixes(prefix_cache)
        self._kept: dict[int, Kept] = {}  # by number, the longest unused first
        self._unused = list(range(prefix_cache))
        self._kept_bytes, self._most_kept_bytes = 0, prefix_cache_bytes

    def weights_changed(self, version: int) -> None:
        """Newcomers share nothing that older weights computed. Active sequences go on over what they have, but for
        those that begin anew."""
        self.version = version
        self.begin_anew()
        self._active_prefixes.clear()
        self._kept_prefixes.clear()
        self._kept.clear()
        self._kept_bytes = 0
        self._unused = list(range(self._kept_prefixes.capacity))

    def step(self) -> list[Sequence]:
        """One forward; every sequence whose tokens are all computed gets its next. Returns those that ended."""
        singles, segments = self._plan()
        if not singles and not segments:
            return []
        logits, asking = self._forward(singles, segments)
        if not asking:
            return []
        requests = [sequence.request for sequence in asking]
        draws = uniforms([sequence.seed for sequence in asking], [sequence.generated for sequence in asking])
        ids, logprobs = sample(
            logits, [request.temperature for request in requests], [request.top_p for request in requests], draws
        )
        finished: list[Sequence] = []
        for sequence, token, logprob in zip(asking, ids, logprobs, strict=True):
            sequence.ids.append(token)
            sequence.logprobs.append(logprob)
            sequence.versions.append(self.version)
            if sequence.ended():
                finished.append(sequence)
                self._keep(sequence)
                self._release(sequence)
        return finished

    def _plan(self) -> tuple[list[Sequence], list[tuple[Sequence, Segment]]]:
        singles: list[Sequence] = []
        segments: list[tuple[Sequence, Segment]] = []
        budget = self._prefill_tokens
        if not self._waiting:
            self._close_holes()
        for sequence in self._rows:
            if sequence is None:
                continue
            if sequence.cached == len(sequence.ids) - 1:
                singles.append(sequence)
            elif budget > 0:  # a prompt longer than one step's budget
                segments.append(self._segment(sequence, budget, 0, 0))
                budget -= segments[-1][1].stop - segments[-1][1].start
        while self._waiting and budget > 0 and None in self._rows:
            sequence = self._waiting.popleft()
            sequence.row = self._rows.index(None)
            sequence.cache_version = self.version
            self._rows[sequence.row] = sequence
            source, shared = self._share(sequence)
            segments.append(self._segment(sequence, budget, source, shared))
            segment = segments[-1][1]
            budget -= segment.stop - segment.start
            # what a later newcomer may share is computed by then: segments store their keys in order
            self._active_prefixes.set(sequence.row, sequence.ids, segment.stop)
        return singles, segments

    def _segment(self, sequence: Sequence, budget: int, source: int, shared: int) -> tuple[Sequence, Segment]:
        start = sequence.cached
        stop = min(len(sequence.ids), start + budget)
        sequence.cached = stop
        return sequence, Segment(row=sequence.row, at=0, start=start, stop=stop, source=source, shared=shared)

    def _share(self, sequence: Sequence) -> tuple[int, int]:
        """Copy or arrange to copy the longest known prefix, the last token always excepted: its logits are wanted."""
        most = sequence.ids[:-1]
        source, shared = self._active_prefixes.longest(most)
        number, kept = self._kept_prefixes.longest(most)
        if max(shared, kept) < _LEAST_SHARED:
            return 0, 0
        sequence.cached = max(shared, kept)
        if shared >= kept:
            return source, shared
        self._slots.reserve(sequence.row + 1, kept, len(self._rows), self._context_length)
        self._slots.restore(sequence.row, self._kept[number], kept)
        if kept == self._kept_prefixes.length(number):
            self._forget(number)  # its episode goes on in this row, and will be kept again when this turn ends
        else:
            self._kept[number] = self._kept.pop(number)  # the last used is the last
        return 0, 0

    def _forward(
        self, singles: list[Sequence], segments: list[tuple[Sequence, Segment]]
    ) -> tuple[Tensor, list[Sequence]]:
        """Logits [n, vocab] after the last token of n sequences, and those sequences."""
        tokens = [sequence.ids[-1] for sequence in singles]
        positions = [sequence.cached for sequence in singles]
        asking = list(singles)
        last = list(range(len(singles)))
        placed: list[Segment] = []
        for sequence, segment in segments:
            placed.append(
                Segment(
                    row=segment.row,
                    at=len(tokens),
                    start=segment.start,
                    stop=segment.stop,
                    source=segment.source,
                    shared=segment.shared,
                )
            )
            tokens.extend(sequence.ids[segment.start : segment.stop])
            positions.extend(range(segment.start, segment.stop))
            if segment.stop == len(sequence.ids):
                asking.append(sequence)
                last.append(len(tokens) - 1)
        rows = [sequence.row for sequence in singles]
        highest = max(rows + [segment.row for segment in placed])
        self._slots.reserve(highest + 1, max(positions) + 1, len(self._rows), self._context_length)
        self._slots.step = Step(
            rows=rows,
            positions=positions[: len(rows)],
            segments=placed,
            device=self._device,
            dtype=self._dtype,
        )
        output = self._model(
            input_ids=torch.tensor([tokens], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            logits_to_keep=torch.tensor(last, dtype=torch.long, device=self._device),
        )
        for sequence in singles:
            sequence.cached += 1
        return output.logits[0], asking

    def _keep(self, sequence: Sequence) -> None:
        """Its next turn begins with these very tokens; so might another's."""
        if sequence.cache_version != self.version or self._kept_prefixes.capacity == 0:
            return
        if not self._unused:
            self._forget(next(iter(self._kept)))
        number = self._unused.pop()
        self._kept[number] = self._slots.keep(sequence.row, sequence.cached)
        self._kept_bytes += _bytes(self._kept[number])
        self._kept_prefixes.set(number, sequence.ids, sequence.cached)
        while self._kept_bytes > self._most_kept_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, number: int) -> None:
        self._kept_bytes -= _bytes(self._kept.pop(number))
        self._kept_prefixes.drop(number)
        self._unused.append(number)

    def _release(self, sequence: Sequence) -> None:
        self._active_prefixes.drop(sequence.row)
        super()._release(sequence)

    def _close_holes(self) -> None:
        """Move the last row down while a quarter of the rows attended over are empty: they cost time, moves too."""
        highest = max((row for row, sequence in enumerate(self._rows) if sequence), default=-1)
        empty = [row for row in range(highest) if self._rows[row] is None]
        while len(empty) * 4 > highest + 1:
            sequence, target = self._rows[highest], empty.pop(0)
            assert sequence is not None
            self._slots.move(highest, target, sequence.cached)
            self._active_prefixes.move(highest, target)
            self._rows[target], self._rows[highest] = sequence, None
            sequence.row = target
            while highest >= 0 and self._rows[highest] is None:
                highest -= 1
            empty = [row for row in empty if row < highest]


def _bytes(kept: Kept) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in kept)
