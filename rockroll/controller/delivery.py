"""Weights from the trainer to the engine, proved.

In: a trainer and an engine. Out: the new version in the engine; CanaryError when it loaded something else. Leaves the
form of the hand-over to train/ and engine/, and whether the two compute the same to canary.py.
"""

from __future__ import annotations

from pathlib import Path

from rockroll.engine.api import Engine
from rockroll.errors import CanaryError
from rockroll.train.api import Trainer


async def deliver(trainer: Trainer, engine: Engine, folder: Path) -> int:
    """Hands the trainer's weights to the engine; returns their version.

    Raises CanaryError when the engine's proof (version, number of tensors, digest) is not that of what was exported.
    """
    exported = await trainer.export(str(folder))
    loaded = await engine.load(str(folder), exported.version, exported.digest)
    sent = (exported.version, exported.tensors, exported.digest)
    got = (loaded.version, loaded.tensors, loaded.digest)
    if sent != got:
        raise CanaryError(
            f"the engine loaded other weights than the trainer exported: (version, tensors, digest) {got} after {sent}"
        )
    return exported.version
