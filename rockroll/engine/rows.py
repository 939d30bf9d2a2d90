"""Requests under way: one sequence each, in so many rows, and those that wait for one.

In: requests, in the order they came. Out: who is active and who waits. Belongs to one thread. Leaves computing to
batch.py (quick: what others computed is shared) and steady.py (the same bits whatever else is under way).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from rockroll.engine.api import GenerateRequest, Generation, Piece


class Sequence:
    """One request under way. `cached` of its ids have their keys and values in its row."""

    def __init__(self, request: GenerateRequest, seed: int) -> None:
        self.request = request
        self.seed = seed
        self.ids = list(request.prompt_ids)
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.stops = frozenset(request.stop_ids)
        self.cached = 0
        self.row = -1
        self.cache_version = -1
        self.done = False
        self.told = 0
        self.thrown = 0

    @property
    def generated(self) -> int:
        return len(self.logprobs)

    def generation(self, finish_reason: Any) -> Generation:
        return Generation(
            token_ids=self.ids[len(self.request.prompt_ids) :],
            logprobs=self.logprobs,
            versions=self.versions,
            finish_reason=finish_reason,
            thrown=self.thrown,
        )

    def begin_anew(self) -> None:
        """As if nothing had been computed of it; what was told is void with the next piece, which starts at 0."""
        self.thrown += self.generated
        del self.ids[len(self.request.prompt_ids) :]
        self.logprobs, self.versions = [], []
        self.cached, self.cache_version, self.told = 0, -1, 0

    def piece(self) -> Piece | None:
        """The tokens since the last piece, if there are any."""
        if self.told == self.generated:
            return None
        start, self.told = self.told, self.generated
        begun = len(self.request.prompt_ids) + start
        return Piece(
            start=start, token_ids=self.ids[begun:], logprobs=self.logprobs[start:], versions=self.versions[start:]
        )

    def ended(self) -> str | None:
        if self.ids[-1] in self.stops:
            return "stop"
        return "length" if self.generated >= self.request.max_tokens else None


class Rows:
    """Sequences active in at most `rows` rows, and those that wait for one."""

    def __init__(self, rows: int) -> None:
        self._rows: list[Sequence | None] = [None] * rows
        self._waiting: deque[Sequence] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or any(self._rows)

    @property
    def held(self) -> int:
        """Tokens of the active rows; may be asked for in any thread."""
        return sum(len(sequence.ids) for sequence in list(self._rows) if sequence)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Forget it, wherever it is."""
        if sequence.row >= 0:
            self._release(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def begin_anew(self) -> None:
        """Active sequences that ask for it wait again, before the newcomers and in the order of their rows."""
        for sequence in reversed([each for each in self._rows if each and each.request.anew]):
            self.abort(sequence)
            sequence.begin_anew()
            self._waiting.appendleft(sequence)

    def drain(self) -> list[Sequence]:
        """Every sequence, active or waiting, taken out."""
        taken = [sequence for sequence in self._rows if sequence] + list(self._waiting)
        for sequence in taken:
            self.abort(sequence)
        return taken

    def _release(self, sequence: Sequence) -> None:
        self._rows[sequence.row] = None
        sequence.row = -1
