"""Orphans that nobody waits for are gone, also after a time without any child."""

from __future__ import annotations

import subprocess
import sys

REAPS = """
import asyncio, os, subprocess
from pathlib import Path
from rockroll.sandbox.linux import reaper
from rockroll.sandbox.linux.process import become_subreaper

async def orphan_goes() -> None:
    with reaper.starting():
        made = subprocess.run(["sh", "-c", "sleep 0.05 >/dev/null & echo $!"], capture_output=True)
    pid = int(made.stdout)
    async with asyncio.timeout(5):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)

async def main() -> None:
    become_subreaper()
    reaps = reaper.Reaper()
    reaps.start()
    await asyncio.sleep(0.1)  # there is no child
    for _ in range(2):
        await orphan_goes()
        await asyncio.sleep(0.1)  # none again
    reaps.close()

asyncio.run(main())
"""


def test_orphans_end_also_after_a_time_without_a_child() -> None:
    subprocess.run([sys.executable, "-c", REAPS], check=True, timeout=20)
