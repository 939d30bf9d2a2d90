"""A hub for a benchmark, on the loopback.

In: where its file goes. Out: the hub's process for as long as the context. Leaves nodes to those that join it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rockroll.errors import HostError


@asynccontextmanager
async def hub(file: Path, *options: str) -> AsyncIterator[int]:
    """A hub's process; its pid. options: as of `rockroll hub`."""
    ready, told = os.pipe()
    argv = ("-m", "rockroll.placement.hub", "--address", "tcp://127.0.0.1:0", "--file", str(file), *options)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, "--ready-fd", str(told), pass_fds=[told], stderr=asyncio.subprocess.DEVNULL
    )
    os.close(told)
    try:
        if await asyncio.to_thread(os.read, ready, 16) != b"ready\n":
            raise HostError("the benchmark's hub did not start; `rockroll hub --address tcp://127.0.0.1:0` says why")
        yield process.pid
    finally:
        os.close(ready)
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
