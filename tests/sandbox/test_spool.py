"""What a sandbox's log promises."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rockroll.sandbox.exec.spool import Spool


async def test_it_is_read_by_offset_and_followed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "log")
    spool.write(b"one\n")
    seen: list[tuple[int, bytes]] = []

    async def follow() -> None:
        async for part in spool.follow(2):
            seen.append(part)

    following = asyncio.ensure_future(follow())
    await asyncio.sleep(0)
    spool.write(b"two\n")
    await asyncio.sleep(0.01)
    spool.close(remove=False)
    await following
    assert seen == [(2, b"e\n"), (4, b"two\n")]


async def test_over_its_limit_the_oldest_goes_and_offsets_stay(tmp_path: Path) -> None:
    path = tmp_path / "log"
    spool = Spool(path, limit=1 << 20)
    for number in range(64):
        spool.write(b"%02d" % number * 32768)
    assert spool.size == 64 * 65536
    assert spool.read(spool.size - 65536) == b"63" * 32768
    assert spool.size - spool.start <= 1 << 20
    assert path.stat().st_blocks * 512 <= 1 << 20
    first, data = await anext(aiter(spool.follow(0)))
    assert first == spool.start and data[:2].isdigit()
    spool.close(remove=False)
    again = Spool(path, limit=1 << 20)
    assert (again.start, again.size) == (spool.start, spool.size)
    again.close(remove=True)
