"""The trainer's weights as a Hugging Face folder that an engine, or anybody, loads.

In: a DeepSpeed engine at any ZeRO stage, and the folder the model came from. Out: config, tokenizer files and one
model.safetensors, complete or not there. Every rank walks through `Weights`, rank 0 writes. Leaves the delivery to
engines, and what an adapter adds to a weight to lora.py.

Tensors go to the file one by one: beside the shards that a rank holds anyway, rank 0 needs room for one bucket.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rockroll.append import cause
from rockroll.digest import Digest
from rockroll.errors import TrainError
from rockroll.train import folder, lora
from rockroll.train.api import Exported
from rockroll.train.tensor_file import Layout, write_tensors

_NOT_COPIED = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx")
BUCKET = 64 << 20
"""Bytes of sharded weights that are gathered together; one larger tensor is gathered alone."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the export."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    sources: tuple[Tensor, ...]
    """The parameters it is made of, which ZeRO-3 has to gather first."""
    value: Callable[[], Tensor]
    """The tensor, once they are there."""

    @property
    def bytes(self) -> int:
        return sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in self.sources)


def weights(model: Any) -> list[Piece]:
    """Every tensor of a model, tied ones once, adapters merged, under the names that `from_pretrained` expects."""
    adapted = lora.adapted(model)
    pieces: list[Piece] = []
    for name, p in model.named_parameters():  # names a tied parameter once, by its first name
        if lora.is_adapters(name):
            continue
        plain = lora.plain_name(name)
        if (layer := adapted.get(plain)) is not None:
            sources = (p, *lora.matrices(layer))
            pieces.append(Piece(plain, p.dtype, _shape(p), sources, lambda layer=layer: lora.merged(layer)))
        else:
            pieces.append(Piece(plain, p.dtype, _shape(p), (p,), p.detach))
    persistent = model.state_dict().keys()
    for name, b in model.named_buffers():
        if name in persistent:
            pieces.append(Piece(lora.plain_name(name), b.dtype, tuple(b.shape), (), b.detach))
    return pieces


def adapter(model: Any) -> list[Piece]:
    """The adapter's tensors under the names that peft expects."""
    return [
        Piece(lora.peft_name(name), p.dtype, _shape(p), (p,), p.detach)
        for name, p in model.named_parameters()
        if lora.is_adapters(name)
    ]


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


class Walk:
    """The tensors of some pieces, one after the other, once.

    sharded: the parameters are ZeRO-3's. keep: this rank wants the tensors; the others walk through all of them, too,
    as gathering needs every rank, and get none.
    """

    def __init__(self, pieces: list[Piece], *, sharded: bool, keep: bool) -> None:
        self._pieces, self._sharded, self._keep = pieces, sharded, keep
        self._steps = self._each()
        self.layout: Layout = {piece.name: (piece.dtype, piece.shape) for piece in pieces}
        """Names, dtypes and shapes in the walk's order."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) in the layout's order. A tensor is only good until the next one."""
        return self._steps

    def finish(self) -> None:
        """Go on to the end without looking: a rank that cannot write must not leave the others waiting."""
        for _ in self._steps:
            pass

    def _each(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in self._buckets():
            with self._gathered([p for piece in bucket for p in piece.sources]), torch.no_grad():
                for piece in bucket if self._keep else ():
                    yield piece.name, piece.value()

    def _buckets(self) -> Iterator[list[Piece]]:
        bucket: list[Piece] = []
        size = 0
        for piece in self._pieces:
            if bucket and size + piece.bytes > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(piece)
            size += piece.bytes
        yield bucket

    def _gathered(self, parameters: list[Tensor]) -> AbstractContextManager[Any]:
        if not self._sharded:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters)


def write(file: Path, walk: Walk) -> tuple[int, str]:
    """Write the tensors of a walk as safetensors; returns (how many, `digest` of them). Raises OSError."""
    seen = Digest()

    def each() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in walk:
            seen.add(name, tensor)
            yield name, tensor

    write_tensors(file, walk.layout, each())
    return len(seen), seen.hex()


def write_model(path: Path, model: Any, walk: Walk, source: Path) -> tuple[int, str]:
    """Write a model's files into `path`, which exists: weights, config, and what `source` has beside weights.

    Returns (tensors, digest) of what was written. Raises OSError.
    """
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_NOT_COPIED):
            shutil.copyfile(file, path / file.name)
    model.config.save_pretrained(path)
    return write(path / "model.safetensors", walk)


def export(path: str, model: Any, walk: Walk, source: Path, version: int) -> Exported:
    """The whole folder at `path`, replaced in one step. Raises TrainError where it cannot be written."""
    target = Path(path).absolute()
    try:
        partial = folder.aside(target)
        tensors, digest = write_model(partial, model, walk, source)
        folder.put(partial, target)
    except OSError as error:
        walk.finish()
        why = cause(target, error)
        shutil.rmtree(target.with_name(target.name + ".partial"), ignore_errors=True)  # or it would keep the disk full
        raise TrainError(f"cannot export weights to {target}: {why}") from error
    return Exported(version=version, tensors=tensors, digest=digest)
