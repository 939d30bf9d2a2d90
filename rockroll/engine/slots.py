"""Keys and values of the requests in a batch, and the attention over them.

In: from the model, each layer's new queries, keys and values, flattened over all requests as one row of N tokens;
from the batch, a `Step` that says whose they are. Out: attention outputs. `Slots.attend` is registered as an attention
implementation of transformers, so that any model that goes through its AttentionInterface runs here unchanged,
without padding, prompts and single tokens in the same forward. Leaves which request has which row to batch.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from rockroll.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Several tokens of one request, or the first of a new one: positions start … stop-1."""

    row: int
    at: int
    """Where they begin among the step's N tokens."""
    start: int
    stop: int
    source: int = 0
    shared: int = 0
    """The first `shared` positions are those of row `source`, computed earlier or before it in this very step."""


@dataclass(kw_only=True)
class Step:
    """Whose tokens a forward computes: first one token each for `rows`, then the segments in order."""

    rows: list[int]
    positions: list[int]
    segments: list[Segment]
    device: torch.device
    dtype: torch.dtype
    _masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.row_index = torch.tensor(self.rows, dtype=torch.long, device=self.device)
        self.position_index = torch.tensor(self.positions, dtype=torch.long, device=self.device)
        self.height = max(self.rows, default=-1) + 1
        self.width = max(self.positions, default=-1) + 1
        self.holes = self.height != len(self.rows) or self.rows != sorted(self.rows)

    def single_mask(self, window: int | None) -> Tensor:
        """[height, 1, 1, width], added to scores: a row sees its positions up to now; an empty row sees the first."""
        key = (-1, window)
        if key not in self._masks:
            last = torch.zeros(self.height, dtype=torch.long, device=self.device)
            last[self.row_index] = self.position_index
            here = torch.arange(self.width, device=self.device)
            hidden = here > last.unsqueeze(1)
            if window is not None:
                hidden |= here <= last.unsqueeze(1) - window
            self._masks[key] = self._added(hidden)[:, None, None, :]
        mask = self._masks[key]
        assert mask is not None
        return mask

    def segment_mask(self, index: int, window: int | None) -> Tensor | None:
        """[new tokens, stop], added to scores; None where causal from position 0 or a single token says it all."""
        segment = self.segments[index]
        if window is not None and window >= segment.stop:
            window = None
        if window is None and (segment.start == 0 or segment.stop - segment.start == 1):
            return None
        key = (index, window)
        if key not in self._masks:
            now = torch.arange(segment.start, segment.stop, device=self.device).unsqueeze(1)
            here = torch.arange(segment.stop, device=self.device)
            hidden = here > now
            if window is not None:
                hidden |= here <= now - window
            self._masks[key] = self._added(hidden)
        return self._masks[key]

    def _added(self, hidden: Tensor) -> Tensor:
        return torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, -torch.inf)


Kept = list[tuple[Tensor, Tensor]]
"""Keys and values of one request by layer, each [kv heads, positions, head size]."""


class Slots:
    """Per layer, keys and values as [rows, kv heads, positions, head size]; grown when a step needs more."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows = 0
        self._positions = 0
        self.step: Step | None = None

    def reserve(self, rows: int, positions: int, most_rows: int, most_positions: int) -> None:
        """Room for these many; doubles, up to the most there can be, so that growing is rare."""
        if rows <= self._rows and positions <= self._positions:
            return
        if rows > self._rows:
            rows = min(most_rows, max(rows, 2 * self._rows))
        if positions > self._positions:
            positions = min(most_positions, max(positions, 2 * self._positions, 256))
        rows, positions = max(rows, self._rows), max(positions, self._positions)
        grown = {
            index: (_grown(keys, rows, positions), _grown(values, rows, positions))
            for index, (keys, values) in self._layers.items()
        }
        self._layers, self._rows, self._positions = grown, rows, positions  # all or, where memory ends, nothing

    def move(self, source: int, target: int, positions: int) -> None:
        for keys, values in self._layers.values():
            keys[target, :, :positions] = keys[source, :, :positions]
            values[target, :, :positions] = values[source, :, :positions]

    def keep(self, row: int, positions: int) -> Kept:
        """A copy of a row that outlives it."""
        return [(k[row, :, :positions].clone(), v[row, :, :positions].clone()) for k, v in self._layers.values()]

    def restore(self, row: int, kept: Kept, positions: int) -> None:
        for (keys, values), (kept_keys, kept_values) in zip(self._layers.values(), kept, strict=True):
            keys[row, :, :positions] = kept_keys[:, :positions]
            values[row, :, :positions] = kept_values[:, :positions]

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
        step = self.step
        assert step is not None
        refuse_unusual(module, options)
        keys, values = self._store(int(module.layer_idx), step, key[0], value[0])  # type: ignore[arg-type]
        groups = query.shape[1] // keys.shape[1]
        # zeros: what belongs to nobody is sampled with the rest and not read, and must be a number
        out = query.new_zeros((query.shape[2], query.shape[1], values.shape[3]))
        count = len(step.rows)
        if count:
            ask = query[0, :, :count].transpose(0, 1)
            if step.holes:
                ask = ask.new_zeros((step.height, *ask.shape[1:])).index_copy_(0, step.row_index, ask)
            # the heads that share one key head are its queries: no copy of keys for grouped-query attention
            ask = ask.unflatten(1, (keys.shape[1], groups))
            seen = slice(0, step.height), slice(None), slice(0, step.width)
            got = sdpa(ask, keys[seen], values[seen], attn_mask=step.single_mask(sliding_window), scale=scaling)
            got = got.flatten(1, 2)
            out[:count] = got[step.row_index] if step.holes else got
        for index, segment in enumerate(step.segments):
            end = segment.at + segment.stop - segment.start
            seen = slice(segment.row, segment.row + 1), slice(None), slice(0, segment.stop)
            mask = step.segment_mask(index, sliding_window)
            got = sdpa(
                query[:, :, segment.at : end],
                keys[seen],
                values[seen],
                attn_mask=mask,
                is_causal=mask is None and end - segment.at > 1,
                scale=scaling,
                enable_gqa=groups > 1,
            )
            out[segment.at : end] = got[0].transpose(0, 1)
        return out.unsqueeze(0), None

    def _store(self, layer: int, step: Step, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._layers:
            self._layers[layer] = (
                key.new_zeros((self._rows, key.shape[0], self._positions, key.shape[2])),
                value.new_zeros((self._rows, value.shape[0], self._positions, value.shape[2])),
            )
        keys, values = self._layers[layer]
        count = len(step.rows)
        if count:
            keys[step.row_index, :, step.position_index] = key[:, :count].transpose(0, 1)
            values[step.row_index, :, step.position_index] = value[:, :count].transpose(0, 1)
        for segment in step.segments:  # in order: one may share what the one before has just stored
            if segment.shared:
                keys[segment.row, :, : segment.shared] = keys[segment.source, :, : segment.shared]
                values[segment.row, :, : segment.shared] = values[segment.source, :, : segment.shared]
            end = segment.at + segment.stop - segment.start
            keys[segment.row, :, segment.start : segment.stop] = key[:, segment.at : end]
            values[segment.row, :, segment.start : segment.stop] = value[:, segment.at : end]
        return keys, values


def refuse_unusual(module: torch.nn.Module, options: dict[str, Any]) -> None:
    """EngineError for an attention that is more than a softmax over products."""
    if any(options.get(name) is not None for name in ("softcap", "s_aux")):
        raise EngineError(
            f"{type(module).__name__} caps its attention scores or adds sinks, which this engine does not compute;"
            " use a model with plain attention (Llama, Qwen, Mistral, SmolLM, GPT-2, …)"
        )


def _grown(old: Tensor, rows: int, positions: int) -> Tensor:
    new = old.new_zeros((rows, old.shape[1], positions, old.shape[3]))
    new[: old.shape[0], :, : old.shape[2]] = old
    return new
