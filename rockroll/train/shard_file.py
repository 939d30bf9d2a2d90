"""What one rank's optimizer held, in a file; and any part of a parameter, read from the files of all ranks.

In: shards to write; files to read. Out: one safetensors file a rank, whose tensors are named `KEY/NAME@START`; flat
float32 pieces of any length, whoever wrote them. Leaves which shards there are to shards.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rockroll.errors import TrainError
from rockroll.train.shards import MOMENTS, Shard, moments
from rockroll.train.tensor_file import write_tensors

_KEYS = ("weight", *MOMENTS)


def write_shards(path: Path, engine: Any, held: list[Shard]) -> None:
    """The file of this rank. Moments that no update has made yet are left out. Raises OSError."""

    def each() -> Iterator[tuple[str, Tensor]]:
        for shard in held:
            for key, tensor in ({"weight": shard.of(shard.flat)} | moments(engine, shard)).items():
                yield f"{key}/{shard.name}@{shard.start}", tensor

    write_tensors(path, {name: (tensor.dtype, tensor.shape) for name, tensor in each()}, each())


@dataclass(frozen=True, slots=True, order=True)
class _Part:
    start: int
    length: int
    file: int
    tensor: str


class Saved:
    """The files of all ranks together, mapped, not read. Use as a context."""

    def __init__(self, files: list[Path]) -> None:
        self._paths = files
        self._stack = ExitStack()
        self._files: list[Any] = []
        self._parts: dict[tuple[str, str], list[_Part]] = {}

    def __enter__(self) -> Saved:
        from safetensors import safe_open

        for number, path in enumerate(self._paths):
            file = self._stack.enter_context(safe_open(str(path), framework="pt"))
            self._files.append(file)
            for tensor in file.keys():  # noqa: SIM118  (not a mapping)
                key, _, rest = tensor.partition("/")
                name, _, start = rest.rpartition("@")
                length = file.get_slice(tensor).get_shape()[0]
                self._parts.setdefault((key, name), []).append(_Part(int(start), length, number, tensor))
        for parts in self._parts.values():
            parts.sort()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()

    def check(self, name: str, length: int) -> None:
        """Raises TrainError unless every element of the parameter is there once, under every key that it has."""
        for key in _KEYS:
            parts = self._parts.get((key, name), [])
            at = 0
            for part in parts:
                at = at + part.length if part.start == at else -1
            if at != length and (parts or key == "weight"):
                raise TrainError(
                    f"{self._paths[0].parent if self._paths else 'the checkpoint'} does not hold all of {name}: its "
                    f"{key} should be {length} numbers on end; got {[(p.start, p.length) for p in parts]}; use an "
                    "earlier checkpoint"
                )

    def read(self, key: str, name: str, start: int, length: int) -> Tensor:
        """[length] float32: the parameter's flat numbers from `start` on; zeros for moments that there were none of."""
        out = torch.zeros(length)
        for part in self._parts.get((key, name), []):
            low, high = max(start, part.start), min(start + length, part.start + part.length)
            if low < high:
                piece = self._files[part.file].get_slice(part.tensor)[low - part.start : high - part.start]
                out[low - start : high - start] = piece
        return out
