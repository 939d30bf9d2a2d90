"""Hundreds of steps take no more memory, files or threads than tens, and the directory keeps its bounds."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rockroll.controller.config import RecordsConfig
from rockroll.observe.metrics import MetricsLog
from rockroll.rollout.tokenizer import ChatTokenizer
from tests.controller.toy import Run, config
from tests.rollout.conftest import write_model_folder


def of(folder: Path, pattern: str = "*") -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_long_run_stays_as_large_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    tokenizer = ChatTokenizer(write_model_folder(tmp_path / "model"))
    bounds = RecordsConfig(keep="1m", trace_mb=1, advantages=0)
    run = Run(config(steps=400, max_staleness=2, groups=4, episodes=4, records=bounds), tmp_path / "run", tokenizer)
    run.told = True
    seen: dict[int, tuple[int, int, int]] = {}
    write = MetricsLog.write

    def measured(log: MetricsLog, row: dict[str, Any]) -> None:
        write(log, row)
        run.trainer.trained.clear()
        if row["step"] in (200, 400):
            gc.collect()
            files = len(list(Path("/proc/self/fd").iterdir()))
            seen[int(row["step"])] = (tracemalloc.get_traced_memory()[0], files, threading.active_count())

    monkeypatch.setattr(MetricsLog, "write", measured)
    tracemalloc.start()
    try:
        await run.go()
    finally:
        tracemalloc.stop()
    (memory, files, threads), (memory_then, files_then, threads_then) = seen[400], seen[200]
    assert memory - memory_then < 200 * 2_000, f"{(memory - memory_then) / 200:.0f} bytes a step"
    assert files <= files_then + 2 and threads <= threads_then
    path = run.path
    assert of(path / "episodes", "*.jsonl") <= 2**20 and of(path, "trace.json") <= 2**20 + 300
    assert of(path / "ledger") < 2**20 and len(list((path / "checkpoints").iterdir())) == 2
    assert of(path / "running") == 0
    print(f"{(memory - memory_then) / 200:.0f} bytes a step, {files} files, {threads} threads, {of(path):,} bytes")
