"""Sizes and durations as people write them.

In: "512m", "2g", 1048576; "30", "90s", "1h"; "0-1,3". Out: bytes as int, seconds as float, a set of numbers.
ValueError says how to write it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SIZE = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_TIME = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def size(value: str | int) -> int:
    """Bytes: an int, or digits with one of b, k, m, g, t (powers of 1024; "mb" and "mib" are read as "m")."""
    if isinstance(value, int):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?\s*", value.lower())
    if not found:
        raise ValueError(f"a size is digits and one of k, m, g, t, as in 512m; got {value!r}")
    return int(float(found[1]) * _SIZE[found[2]])


def seconds(value: str | float) -> float:
    """Seconds: a number, or digits with one of ms, s, m, h, d."""
    if isinstance(value, int | float):
        return float(value)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|[smhd]?)\s*", value.lower())
    if not found:
        raise ValueError(f"a duration is digits and one of ms, s, m, h, d, as in 30s or 1h; got {value!r}")
    return float(found[1]) * _TIME[found[2]]


def numbers(value: str) -> frozenset[int]:
    """A list as the kernel writes it: "0-1,3" is {0, 1, 3}."""
    found: set[int] = set()
    for part in value.strip().split(","):
        ends = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if not ends or int(ends[2] or ends[1]) < int(ends[1]):
            raise ValueError(f"numbers and ranges with commas between them, as in 0-1,3; got {value!r}")
        found.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return frozenset(found)


def show_numbers(found: Iterable[int]) -> str:
    """{0, 1, 3} -> "0-1,3"."""
    runs: list[list[int]] = []
    for number in sorted(found):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def show_size(n: float) -> str:
    """1536 -> "1.5k"."""
    for unit in ("", "k", "m", "g"):
        if abs(n) < 1024:
            return f"{n:.0f}{unit}" if n == int(n) else f"{n:.1f}{unit}"
        n /= 1024
    return f"{n:.1f}t"
