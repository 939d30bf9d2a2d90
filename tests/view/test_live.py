"""What changes reaches who looks, also after something went wrong."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from rockroll.observe.record import EpisodeLog
from rockroll.view.live import Live
from rockroll.view.runs import Run, Runs


async def test_an_index_that_was_busy_once_is_tried_again_with_the_next_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text("steps: 1\n")
    log, refreshing = EpisodeLog(tmp_path), Run.refreshing
    loop, failed = asyncio.get_running_loop(), asyncio.Event()

    def busy(run: Run) -> Iterator[tuple[int, int]]:
        monkeypatch.setattr(Run, "refreshing", refreshing)
        loop.call_soon_threadsafe(failed.set)
        raise sqlite3.OperationalError("database is locked")
        yield

    monkeypatch.setattr(Run, "refreshing", busy)
    live = Live(Runs([tmp_path]))
    await live.start()
    events = live.events()
    try:
        async with asyncio.timeout(10):
            await anext(events)
            await failed.wait()
            log.add("discarded", 1, {"id": "late"})
            while "episodes" not in await anext(events):
                pass
    finally:
        await events.aclose()  # type: ignore[attr-defined]
        await live.close()
