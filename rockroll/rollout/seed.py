"""Every random draw of a rollout, by name, from the run's one seed.

In: the run's seed and the names of a draw, such as step, group, episode, turn. Out: an int that depends on nothing
else: not on timing, nor on what else is running. Leaves drawing to the engine and the task.
"""

from __future__ import annotations

import hashlib


def derive(*names: int | str, bits: int = 63) -> int:
    """An int of at most `bits` bits, equal for equal names."""
    digest = hashlib.blake2b("\0".join(map(repr, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - bits)
