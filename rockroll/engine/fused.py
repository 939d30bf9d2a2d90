"""Whether an engine holds the weights that it was given, though it holds them under other names.

In: for each tensor of a delivery its size and bit sum, for each parameter of the engine the same, and which names the
engine fuses (q, k and v into one). Out: how many tensors were found again, or the parameter that holds other bits.
Bit sums wrap in int64 and add up: the sum of a fused parameter is the sum of its parts, whatever their order in it,
and rows of zeros that pad a vocabulary add nothing. Pure; leaves reading memory to vllm_worker.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Bits(NamedTuple):
    """A tensor, or several fused into one: how many elements, and the wrapping int64 sum of their raw bits."""

    elements: int
    sum: int


def compare(
    given: Mapping[str, Bits], held: Mapping[str, Bits], fused: Mapping[str, Sequence[str]]
) -> tuple[int, str | None]:
    """(how many tensors of `given` are in `held` bit for bit, the first parameter with other bits or None).

    fused: the engine's name for a part of a path, and the names it is made of: {"qkv_proj": ["q_proj", "k_proj",
    "v_proj"]}. A parameter smaller than what was given for it was repacked by the backend and proves nothing; neither
    do names that the engine does not have (a head that is tied to the embedding).
    """
    whole = {part: name for name, parts in fused.items() for part in parts}
    groups: dict[str, list[Bits]] = {}
    for name, bits in given.items():
        groups.setdefault(".".join(whole.get(part, part) for part in name.split(".")), []).append(bits)
    found = 0
    for name, parts in sorted(groups.items()):
        parameter = held.get(name)
        elements = sum(part.elements for part in parts)
        if parameter is None or parameter.elements < elements:
            continue
        if wrapped(sum(part.sum for part in parts)) != parameter.sum:
            return found, name
        found += len(parts)
    return found, None


def wrapped(value: int) -> int:
    """As int64 arithmetic wraps it."""
    return (value + 2**63) % 2**64 - 2**63
