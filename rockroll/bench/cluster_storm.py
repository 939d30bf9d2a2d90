"""Many sandboxes at once over three nodes of a cluster, against as many on one node.

In: how many. Out: sandboxes a second each way, and their ratio. The nodes are three processes of this machine with
homes of their own, so they share its cores: what is measured is what placing over a cluster costs, and nothing is won
by more machines. The two ways take turns, each first once. Leaves real machines to whoever has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rockroll import home
from rockroll.bench.hub import hub
from rockroll.errors import HostError, UsageError
from rockroll.sandbox import where, wire
from rockroll.sandbox.cluster.client import HubNode, connect_hub

NODES = 3
CONFIG = {"memory": "64m", "pids": 32}
AT_ONCE = 64
"""Calls under way, as of `rockroll sandbox up`: how many start at once is each node's to say."""
END_S = 60


async def run(count: int) -> dict[str, Any]:
    """UsageError for a count that is none; HostError where the hub or a node does not start; NoRoom where this machine
    does not hold that many."""
    if count < NODES:
        raise UsageError(f"storm: at least {NODES} sandboxes, one for each node; got {count}")
    with tempfile.TemporaryDirectory(prefix="rockroll-storm-") as folder:
        file = Path(folder) / "cluster.json"
        # as many CPUs granted as are asked for: starts are measured, not what the nodes hold
        async with hub(file, "--overcommit", str(count)), _nodes(Path(folder), file):
            at = where.hub(file)
            assert at is not None
            cluster = await connect_hub(at.address, at.server_key)
            try:
                for name in _names():  # each has started one, and its runtime is in memory
                    await _storm(cluster, 1, name)
                one, three = [], []
                spread: Counter[str] = Counter()
                for over in (1, NODES, NODES, 1):
                    if over == 1:
                        one.append((await _storm(cluster, count, _names()[0]))[0])
                    else:
                        rate, spread = await _storm(cluster, count, None)
                        three.append(rate)
            finally:
                await cluster.close()
    return {
        "figures": {
            "storm_over_three_nodes_per_s": sum(three) / len(three),
            "storm_three_to_one_ratio": sum(three) / sum(one),
            "storm_fullest_node_boxes": max(spread.values()),
            "storm_emptiest_node_boxes": min(spread.values()) if len(spread) == NODES else 0,
        },
        "baselines": {"storm_on_one_node_per_s": sum(one) / len(one)},
    }


def _names() -> list[str]:
    return [f"storm-{number}" for number in range(NODES)]


async def _storm(cluster: HubNode, count: int, node: str | None) -> tuple[float, Counter[str]]:
    """Sandboxes a second, and how many each node had. node: that one alone, asked directly. They go afterwards."""
    body = wire.Create(config=CONFIG)
    client = cluster if node is None else await cluster.at(node)
    slots = asyncio.Semaphore(AT_ONCE)
    made: list[wire.SandboxInfo] = []

    async def make() -> None:
        async with slots:
            made.append(await client.call("sandbox.create", body, type=wire.SandboxInfo))

    async def remove(box: wire.SandboxInfo) -> None:
        async with slots:
            await (await cluster.at(box.node)).call("sandbox.delete", wire.Ref(id=box.id))

    begun = time.perf_counter()
    said = await asyncio.gather(*(make() for _ in range(count)), return_exceptions=True)
    took = time.perf_counter() - begun
    await asyncio.gather(*(remove(box) for box in made))
    for error in said:
        if error is not None:
            raise error
    return count / took, Counter(box.node for box in made)


@asynccontextmanager
async def _nodes(folder: Path, file: Path) -> AsyncIterator[None]:
    """Three members, each with a home in `folder`; nothing of them is left."""
    started: list[asyncio.subprocess.Process] = []
    try:
        for name in _names():
            argv = ("-m", "rockroll", "node", "--hub", str(file), "--name", name)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *argv),
                env={**os.environ, "ROCKROLL_HOME": str(folder / name)},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            started.append(process)
        for process in started:
            assert process.stdout and process.stderr
            if b"joined" not in await process.stdout.readline():
                said = (await process.stderr.read()).decode(errors="replace").strip()
                raise HostError(f"a node of the benchmark did not join: {said or 'it said nothing'}")
        yield
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)  # as Ctrl-C: it leaves the cluster
        await asyncio.gather(*(process.communicate() for process in started))
        await asyncio.gather(*(asyncio.to_thread(_end, folder / name) for name in _names()))


def _end(path: Path) -> None:
    """The node of a home, its warden and its sockets are gone. Blocks."""
    guard, lock = path / "node" / "guard.json", path / "node" / "warden.lock"
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, IndexError):
        warden = int(lock.read_text().split()[0])
        for pid, number in ((int(json.loads(guard.read_text())["node"][0]), signal.SIGTERM), (warden, None)):
            with contextlib.suppress(ProcessLookupError):
                _wait(pid, number)
    shutil.rmtree(home.runtime_dir_of(path), ignore_errors=True)


def _wait(pid: int, number: signal.Signals | None) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        if number is not None:
            signal.pidfd_send_signal(pidfd, number)
        if not select.select([pidfd], [], [], END_S)[0]:
            raise HostError(f"process {pid} of the benchmark did not end within {END_S} s; end it by hand")
    finally:
        os.close(pidfd)
