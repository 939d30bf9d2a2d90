"""Which known token sequence begins most like a new prompt.

In: token sequences under small numbers. Out: the number whose sequence shares the longest prefix with given ids, and
how long it is. One comparison over a table, whatever the lengths. Leaves the keys and values that belong to the
sequences to slots.py and batch.py.
"""

from __future__ import annotations

import numpy as np


class Prefixes:
    """A table of `capacity` sequences, empty at first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._tokens = np.zeros((capacity, 256), dtype=np.int32)
        self._lengths = np.zeros(capacity, dtype=np.int64)

    def set(self, number: int, ids: list[int], length: int) -> None:
        """The first `length` of `ids` are known under this number."""
        if length > self._tokens.shape[1]:
            wider = np.zeros((len(self._tokens), max(length, 2 * self._tokens.shape[1])), dtype=np.int32)
            wider[:, : self._tokens.shape[1]] = self._tokens
            self._tokens = wider
        self._tokens[number, :length] = ids[:length]
        self._lengths[number] = length

    def move(self, source: int, target: int) -> None:
        self._tokens[target] = self._tokens[source]
        self._lengths[target] = self._lengths[source]
        self._lengths[source] = 0

    def drop(self, number: int) -> None:
        self._lengths[number] = 0

    def clear(self) -> None:
        self._lengths[:] = 0

    def length(self, number: int) -> int:
        return int(self._lengths[number])

    def longest(self, ids: list[int]) -> tuple[int, int]:
        """(number, shared length), the length 0 where nothing is shared."""
        width = min(len(ids), int(self._lengths.max(initial=0)))
        if width == 0:
            return 0, 0
        differ = self._tokens[:, :width] != np.array(ids[:width], dtype=np.int32)
        shared = np.where(differ.any(1), differ.argmax(1), width)
        shared = np.minimum(shared, self._lengths)
        best = int(shared.argmax())
        return best, int(shared[best])
