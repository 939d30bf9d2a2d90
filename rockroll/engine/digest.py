"""A digest of a set of tensors, the same wherever it is taken: trainer, file or engine.

In: names and tensors. Out: 16 hex digits that change with any bit, name, shape or dtype. Two processes compare
digests to prove that weights arrived. It guards against mistakes, not against an adversary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bit_sum(tensor: Tensor) -> int:
    """The sum of the elements' raw bits, wrapping in 64 bits, in [0, 2**64): exact in any order, on any device.

    Each element's bits are read as a signed integer of its own width. Two elements swapped are not noticed; a stale
    or half-written tensor is.
    """
    bits = tensor.detach().contiguous().reshape(-1).view(_BITS[tensor.element_size()])
    return int(bits.sum(dtype=torch.int64).item()) & _MASK


def digest(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of names, dtypes, shapes and `bit_sum`s, whatever the mapping's order or the tensors' devices."""
    folded = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        tensor = tensors[name]
        folded.update(f"{name} {tensor.dtype} {list(tensor.shape)} {bit_sum(tensor)}\n".encode())
    return folded.hexdigest()
