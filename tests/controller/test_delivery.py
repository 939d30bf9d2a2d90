"""A delivery of weights that went wrong stops the run and says with which proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rockroll.controller.delivery import deliver
from rockroll.engine.api import Loaded
from rockroll.errors import CanaryError
from rockroll.train.api import Exported


class End:
    """One end of a delivery, with a settable proof."""

    def __init__(self, digest: str = "d") -> None:
        self._digest = digest

    async def export(self, path: str) -> Exported:
        return Exported(version=4, tensors=2, digest="d")

    async def load(self, path: str, version: int, digest: str = "") -> Loaded:
        return Loaded(version=version, tensors=2, digest=self._digest)


async def test_equal_proofs_deliver_the_version(tmp_path: Path) -> None:
    trainer: Any = End()
    assert await deliver(trainer, trainer, tmp_path) == 4


async def test_another_digest_stops_the_run(tmp_path: Path) -> None:
    trainer: Any = End()
    engine: Any = End(digest="other")
    with pytest.raises(CanaryError, match=r"\(4, 2, 'other'\) after \(4, 2, 'd'\)"):
        await deliver(trainer, engine, tmp_path)
