"""What `rockroll sandbox ps` and `logs --tail` print.

In: processes, or a log as it comes. Out: cells of a table, bytes. Leaves asking for them to sandbox.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from rockroll.units import show_size

if TYPE_CHECKING:
    from rockroll.sandbox.wire import ProcessInfo

HEADER = ["PID", "PARENT", "USER", "STATE", "CPU", "MEMORY", "SESSION", "COMMAND"]
WIDTH = 120
"""Characters of a command line; --json has all of it."""


def row(process: ProcessInfo) -> list[str]:
    """The cells under HEADER."""
    command = process.command if len(process.command) <= WIDTH else process.command[: WIDTH - 3] + "..."
    return [
        str(process.pid),
        str(process.parent),
        process.user,
        process.state,
        f"{process.cpu_s:.2f}",
        show_size(process.memory_bytes),
        process.session or "-",
        command,
    ]


async def last_lines(log: AsyncIterator[bytes], count: int, offset: int) -> tuple[bytes, int]:
    """The last `count` lines of a log that begins at `offset`, and the offset at its end."""
    kept = b""
    async for data in log:
        offset += len(data)
        kept = _tail(kept + data, count)
    return kept, offset


def _tail(data: bytes, count: int) -> bytes:
    begin = len(data) - data.endswith(b"\n")
    for _ in range(count):
        begin = data.rfind(b"\n", 0, begin)
        if begin < 0:
            return data
    return data[begin + 1 :] if count else b""
