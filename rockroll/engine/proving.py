"""What every replica is to hold, and the proof that one does.

In: a folder of weights, its version and digest. Out: a replica's `Loaded`, equal to them, or an error that says whether
the folder or the replica is at fault. Leaves asking again and replacing to pool.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rockroll.engine.api import Loaded
from rockroll.engine.replica import Life, is_death
from rockroll.errors import CanaryError, EngineError, RockrollError


@dataclass(frozen=True)
class Weights:
    """What every replica is to hold."""

    path: str
    version: int
    digest: str
    """The exporter's; "" where it said none."""

    def check_newer(self, before: Weights | None) -> None:
        """EngineError where these are older than what is in use."""
        if before is not None and self.version < before.version:
            raise EngineError(
                f"version {self.version} of the weights is older than version {before.version}, which the engine has; "
                "deliver the trainer's last export",
                code="old_version",
            )


async def proved(life: Life, weights: Weights) -> Loaded:
    """The replica has the weights. CanaryError where it says that it holds others; what the replica raises."""
    loaded = await life.client.load(weights.path, weights.version, weights.digest)
    sent, got = (weights.version, weights.digest or loaded.digest), (loaded.version, loaded.digest)
    if sent != got:
        raise CanaryError(f"{life.name} holds other weights than were delivered: (version, digest) {got} after {sent}")
    return loaded


def at_fault(error: RockrollError) -> Literal["folder", "bits", "replica"]:
    """Who is to blame for a delivery that failed twice: a folder that cannot be loaded, one that holds other bits than
    were exported, or the replica, which another process would do better than."""
    if error.fields.get("code") == "wrong_weights":
        return "bits"
    if isinstance(error, EngineError) and not is_death(error) and error.fields.get("code") != "held_wrong":
        return "folder"
    return "replica"


def agreed(proofs: list[Loaded], version: int) -> None:
    """CanaryError where replicas hold different weights."""
    if len(digests := {proof.digest for proof in proofs}) > 1:
        raise CanaryError(f"engine replicas loaded different weights as version {version}: {sorted(digests)}")
