"""A safetensors file, written one tensor after the other.

In: what will be in it, then the tensors in that order. Out: the file, as `safetensors` reads it; at no time is more
than one of its tensors in memory. Leaves names, order and where tensors come from to others.

The format: 8 bytes that say how long the header is (little-endian), a JSON header that maps a name to dtype, shape and
its bytes' place, then the bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

Layout: TypeAlias = Mapping[str, tuple[torch.dtype, Sequence[int]]]
"""Name -> dtype and shape, in the order in which the tensors will come."""

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, layout: Layout, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write the file at `path`. Raises OSError where it cannot be written, ValueError for tensors unlike the layout."""
    order = iter(layout.items())
    with path.open("wb") as file:
        file.write(_header(layout))
        for name, tensor in tensors:
            expected, (dtype, shape) = next(order, ("nothing more", (None, ())))
            if name != expected or tensor.dtype != dtype or list(tensor.shape) != list(shape):
                raise ValueError(
                    f"{path} has a place for {expected} {dtype} {list(shape)}; "
                    f"got {name} {tensor.dtype} {list(tensor.shape)}"
                )
            if tensor.numel():
                raw = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
                file.write(raw.numpy().data)
        if (missing := next(order, None)) is not None:
            raise ValueError(f"{path} has a place for {missing[0]}, which was not given")


def _header(layout: Layout) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in layout.items():
        end = at + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the bytes of tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text
