"""Environments of whole runs, named in recipes' way as `tests.whole.games:Class`."""

from __future__ import annotations

import hashlib
from typing import Any


class Fate:
    """Every answer earns 0 or 1 and goes on or not, by what it says: no two answers are worth the same to a learner."""

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        self.seed, self.turn = seed, 0
        return f"make file {seed}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        fate = hashlib.blake2b(f"{self.seed}/{self.turn}/{action}".encode(), digest_size=2).digest()
        return "go on", float(fate[0] % 2), fate[1] % 3 == 0 or self.turn == 4, False, {}
