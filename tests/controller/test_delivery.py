"""A delivery of weights that went wrong stops the run and says with which values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rockroll.controller.config import CanaryConfig
from rockroll.controller.delivery import canary, deliver
from rockroll.engine.api import Loaded
from rockroll.errors import CanaryError
from rockroll.train.api import Exported


class End:
    """One end of a delivery, with settable log-probs and proof."""

    def __init__(self, logprobs: list[float], digest: str = "d") -> None:
        self._logprobs, self._digest = logprobs, digest

    async def logprobs(self, ids: list[int]) -> list[float]:
        return self._logprobs

    async def export(self, path: str) -> Exported:
        return Exported(version=4, tensors=2, digest="d")

    async def load(self, path: str, version: int, digest: str = "") -> Loaded:
        return Loaded(version=version, tensors=2, digest=self._digest)


async def test_equal_proofs_deliver_the_version(tmp_path: Path) -> None:
    trainer: Any = End([])
    assert await deliver(trainer, trainer, tmp_path) == 4


async def test_another_digest_stops_the_run(tmp_path: Path) -> None:
    trainer: Any = End([])
    engine: Any = End([], digest="other")
    with pytest.raises(CanaryError, match=r"\(4, 2, 'other'\) after \(4, 2, 'd'\)"):
        await deliver(trainer, engine, tmp_path)


@pytest.mark.parametrize("theirs", [-1.5, float("nan")])
async def test_the_canary_names_the_worst_token_and_both_values(theirs: float) -> None:
    trainer: Any = End([-1.0, theirs])
    engine: Any = End([-1.001, -1.0])
    with pytest.raises(CanaryError, match=r"token 2 \(id 7\) is (-1\.5|nan).* and -1\.0000"):
        await canary(trainer, engine, [5, 6, 7], CanaryConfig(max_abs_dlogp=0.01))


async def test_a_small_difference_is_reported() -> None:
    trainer: Any = End([-1.0, -2.0])
    engine: Any = End([-1.001, -2.0])
    assert await canary(trainer, engine, [5, 6, 7], CanaryConfig(max_abs_dlogp=0.01)) == pytest.approx(0.001)
