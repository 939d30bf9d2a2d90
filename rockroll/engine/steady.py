"""Continuous batching whose every result depends on the request alone: what else is under way changes no bit.

In and out: as batch.py. The price is speed: every forward has one of two fixed shapes, whatever there is to do, since
matrix products and sums of another shape round otherwise (measured here: log-probs of one request differ in the last
bits with the number of its neighbours).

    a prompt     alone, in pieces of 64 tokens, the last one filled up; nothing is shared or kept between requests
    a next token of every request under way, in one forward of all rows, empty ones included

Each attends over the whole width of the context, what is not there yet hidden, in plain products and a softmax.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rockroll.engine.rows import Rows, Sequence
from rockroll.engine.sampling import sample, uniforms
from rockroll.engine.slots import refuse_unusual

_PIECE = 64
_ROWS = 16
"""Rows come in multiples of this: a product's last rows would be computed by another kernel than the others."""


class SteadySlots:
    """Per layer, keys and values as [rows, kv heads, width, head size], all of it from the first token on.

    Between `at` and the next one a forward computes `positions`: of `row` alone, [_PIECE]; of every row, [rows].
    """

    def __init__(self, rows: int, width: int) -> None:
        self.rows, self.width = -(-rows // _ROWS) * _ROWS, -(-width // _PIECE) * _PIECE
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._row: int | None = None
        self._positions = torch.zeros(0)
        self._hidden: dict[int | None, Tensor] = {}

    def at(self, positions: Tensor, row: int | None = None) -> None:
        self._row, self._positions, self._hidden = row, positions, {}

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """One layer. query: [1, heads, N, size], key and value: [1, kv heads, N, size]. Returns [1, N, heads, size]."""
        refuse_unusual(module, options)
        keys, values = self._store(int(module.layer_idx), key[0], value[0])  # type: ignore[arg-type]
        groups = query.shape[1] // keys.shape[1]
        # [rows or 1, kv heads, queries of that head, size]: N queries of one row, or one of each
        ask = query[0].transpose(0, 1)[:, :, None] if self._row is None else query
        tokens = ask.shape[2]
        ask = ask.unflatten(1, (keys.shape[1], groups)).flatten(2, 3)
        scores = (ask @ keys.transpose(2, 3)) * (query.shape[3] ** -0.5 if scaling is None else scaling)
        hidden = self._mask(sliding_window)  # [rows or 1, tokens, width]
        scores = scores.masked_fill(hidden.repeat(1, groups, 1)[:, None], -torch.inf)
        got = torch.softmax(scores.float(), -1).to(values.dtype) @ values
        got = got.unflatten(2, (groups, tokens)).flatten(1, 2)  # [rows or 1, heads, tokens, size]
        return (got[:, :, 0] if self._row is None else got[0].transpose(0, 1)).unsqueeze(0), None

    def _store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._layers:
            self._layers[layer] = (
                key.new_zeros((self.rows, key.shape[0], self.width, key.shape[2])),
                value.new_zeros((self.rows, value.shape[0], self.width, value.shape[2])),
            )
        keys, values = self._layers[layer]
        if self._row is None:
            every = torch.arange(self.rows, device=key.device)
            keys[every, :, self._positions] = key.transpose(0, 1)
            values[every, :, self._positions] = value.transpose(0, 1)
            return keys, values
        keys[self._row, :, self._positions] = key
        values[self._row, :, self._positions] = value
        row = slice(self._row, self._row + 1)
        return keys[row], values[row]

    def _mask(self, window: int | None) -> Tensor:
        if window not in self._hidden:
            now = self._positions[:, None]
            here = torch.arange(self.width, device=now.device)
            hidden = here > now
            if window is not None:
                hidden |= here <= now - window
            self._hidden[window] = hidden[:, None] if self._row is None else hidden[None]
        return self._hidden[window]


class SteadyBatch(Rows):
    """As `batch.Batch`; its rows are those of `slots`."""

    def __init__(self, model: Any, slots: SteadySlots) -> None:
        super().__init__(slots.rows)
        self.version = 0
        self._model, self._slots = model, slots
        self._device: torch.device = model.device

    def weights_changed(self, version: int) -> None:
        """Active sequences go on over what they have, but for those that begin anew."""
        self.version = version
        self.begin_anew()

    def step(self) -> list[Sequence]:
        """The prompt of one newcomer, or the next token of all that are active. Returns those that ended."""
        if self._waiting and None in self._rows:
            sequence = self._waiting.popleft()
            sequence.row = self._rows.index(None)
            self._rows[sequence.row] = sequence
            return self._drawn(self._prompt(sequence), [sequence])
        active = [sequence for sequence in self._rows if sequence]
        return self._drawn(self._next(), active) if active else []

    def _prompt(self, sequence: Sequence) -> Tensor:
        """[rows, vocab]: the logits after its last token, in its row."""
        logits = torch.zeros(0)
        for start in range(0, len(sequence.ids), _PIECE):
            piece = sequence.ids[start : start + _PIECE]
            positions = torch.arange(start, start + _PIECE, device=self._device)
            # what is filled up is hidden from these tokens, and overwritten before any later one could see it
            tokens = torch.tensor([piece + [0] * (_PIECE - len(piece))], device=self._device)
            self._slots.at(positions, sequence.row)
            logits = self._logits(tokens, positions, len(piece) - 1)[0]
        sequence.cached = len(sequence.ids)
        whole = logits.new_zeros((self._slots.rows, len(logits)))
        whole[sequence.row] = logits
        return whole

    def _next(self) -> Tensor:
        """[rows, vocab]: the logits after each row's last token; an empty row computes something and is not read."""
        last = [(each.ids[-1], len(each.ids) - 1) if each else (0, 0) for each in self._rows]
        positions = torch.tensor([position for _, position in last], device=self._device)
        self._slots.at(positions)
        return self._logits(torch.tensor([[token for token, _ in last]], device=self._device), positions)

    def _logits(self, tokens: Tensor, positions: Tensor, only: int | None = None) -> Tensor:
        keep: Any = 0 if only is None else torch.tensor([only], device=self._device)
        output = self._model(input_ids=tokens, position_ids=positions[None], use_cache=False, logits_to_keep=keep)
        return output.logits[0]

    def _drawn(self, logits: Tensor, asking: list[Sequence]) -> list[Sequence]:
        """One more token for each; of all rows for each way of drawing, so that the shapes are always the same."""
        finished: list[Sequence] = []
        ways = {(each.request.temperature, each.request.top_p) for each in asking}
        for temperature, top_p in sorted(ways):
            chosen = [each for each in asking if (each.request.temperature, each.request.top_p) == (temperature, top_p)]
            seeds, indices = [0] * len(logits), [0] * len(logits)
            for each in chosen:
                seeds[each.row], indices[each.row] = each.seed, each.generated
            every = len(logits)
            ids, logprobs = sample(logits, [temperature] * every, [top_p] * every, uniforms(seeds, indices))
            for each in chosen:
                each.ids.append(ids[each.row])
                each.logprobs.append(logprobs[each.row])
                each.versions.append(self.version)
                if each.ended():
                    finished.append(each)
                    self.abort(each)
        return finished
