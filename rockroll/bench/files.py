"""Copies into and out of a box: one large file, and many small ones.

In: a running box. Out: MB/s and milliseconds as the Python client sees them, beside what this machine does at best:
the same bytes written to its page cache by one process, and the same files by shutil.copytree. Leaves the rest of the
session benchmark to bench/session.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rockroll.sandbox.client import Sandbox

LARGE_MB = 256
SMALL, SMALL_BYTES, FOLDERS = 2000, 2000, 20
RUNS = 5


async def run(box: Sandbox) -> dict[str, Any]:
    """About 10 s and 1 GB of the temporary folder."""
    with tempfile.TemporaryDirectory(prefix="rockroll-bench-") as name:
        place = Path(name)
        large, small = place / "large", place / "small"
        await asyncio.to_thread(_make, large, small)
        # A new folder for each run: ext4 is slow to make files where many were deleted in the last seconds.
        up = [await _ms(lambda: box.upload(large, "/srv/large")) for _ in range(RUNS)]
        down = [await _ms(lambda: box.download("/srv/large", place / "back")) for _ in range(RUNS)]
        up_small = [await _ms(lambda i=i: box.upload(small, f"/srv/small{i}")) for i in range(RUNS)]
        down_small = [await _ms(lambda i=i: box.download(f"/srv/small{i}", place / f"back{i}")) for i in range(RUNS)]
        written = [await asyncio.to_thread(_write_ms, place / "written") for _ in range(RUNS)]
        copied = [
            await _ms(lambda i=i: asyncio.to_thread(shutil.copytree, small, place / f"c{i}")) for i in range(RUNS)
        ]
        await box.remove("/srv/large")
        for i in range(RUNS):
            await box.remove(f"/srv/small{i}", recursive=True)
    speed = LARGE_MB * 1.048576 * 1000
    return {
        "figures": {
            "upload_mb_per_s": speed / statistics.median(up),
            "download_mb_per_s": speed / statistics.median(down),
            f"upload_{SMALL}_files_ms": statistics.median(up_small),
            f"download_{SMALL}_files_ms": statistics.median(down_small),
        },
        "baselines": {
            "page_cache_write_mb_per_s": speed / statistics.median(written),
            f"copytree_{SMALL}_files_ms": statistics.median(copied),
        },
    }


def _make(large: Path, small: Path) -> None:
    block = os.urandom(1 << 20)
    with large.open("wb") as file:
        for _ in range(LARGE_MB):
            file.write(block)
    for i in range(SMALL):
        folder = small / str(i % FOLDERS)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{i}").write_bytes(block[i : i + SMALL_BYTES])


def _write_ms(path: Path) -> float:
    block = os.urandom(1 << 20)
    begun = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(LARGE_MB):
            file.write(block)
    took = (time.perf_counter() - begun) * 1000
    path.unlink()
    return took


async def _ms(call: Callable[[], Awaitable[Any]]) -> float:
    begun = time.perf_counter()
    await call()
    return (time.perf_counter() - begun) * 1000
