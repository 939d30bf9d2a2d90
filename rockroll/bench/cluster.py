"""A command in a sandbox of a cluster against the same command without: what the hub adds.

In: nothing; it starts a hub on the loopback and makes this home's node its only member. Out: figures, and baselines of
the same run: the node asked directly, a bare round trip over TCP. The two ways take turns, call by call, so that what
else this machine does meets both. Leaves other machines' networks to whoever has them: their round trip is added once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rockroll import rpc
from rockroll.bench import cluster_storm
from rockroll.bench.hub import hub
from rockroll.errors import UsageError
from rockroll.placement import member
from rockroll.sandbox import where, wire
from rockroll.sandbox.cluster.scheduler import Scheduler
from rockroll.sandbox.cluster.wire import BoxRow, Load, Want
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.node_client import close_node, connect_node, connect_to

CALLS, BOXES, EACH = 500, 8, 100
NODES, ALIVE, DECISIONS = 200, 10_000, 500


async def run(storm: int = 0) -> dict[str, Any]:
    """storm: sandboxes of cluster_storm.py, which is run afterwards; 0: it is not.

    HostError where no hub can be started; UsageError where this home's node is a member of a cluster already.
    """
    if member.is_member():
        raise UsageError(
            "this home's node is in a cluster; end that with `rockroll node --leave`, or use another ROCKROLL_HOME"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cluster.json"
        async with hub(file) as pid:
            node = await connect_node()
            await member.join(file, "bench")
            try:
                figures = await _figures(node, await connect_to(where.hub(file), "bench"), pid)
            finally:
                await member.leave()
                await close_node()
    trip = _round_trip()
    many = await cluster_storm.run(storm) if storm else {"figures": {}, "baselines": {}}
    local = figures.pop("local_arun_true_p50_ms")
    return {
        "figures": {
            **figures,
            "hub_adds_p50_ms": figures["cluster_arun_true_p50_ms"] - local,
            "over_local_and_a_round_trip_p50_ms": figures["cluster_arun_true_p50_ms"] - local - trip,
            "decision_cpu_ms": _decision(),
            **many["figures"],
        },
        "baselines": {"local_arun_true_p50_ms": local, "tcp_round_trip_p50_ms": trip, **many["baselines"]},
    }


async def _figures(local: rpc.Client, far: Any, hub: int) -> dict[str, float]:
    config = {"memory": "64m", "pids": 32}
    boxes = [
        await local.call("sandbox.create", wire.Create(config=config), type=wire.SandboxInfo) for _ in range(BOXES)
    ]
    try:
        bodies = [wire.Run(id=box.id, command=b"true") for box in boxes]
        for body in bodies:
            await far.call("session.run", body)
        near_ms, far_ms = [], []
        for _ in range(CALLS):
            near_ms.append(await _took(lambda: local.call("session.run", bodies[0])))
            far_ms.append(await _took(lambda: far.call("session.run", bodies[0])))
        near_rate = await _rate(local, bodies)
        before = _cpu_s(hub)
        far_rate = await _rate(far, bodies)
        return {
            "local_arun_true_p50_ms": statistics.median(near_ms),
            "cluster_arun_true_p50_ms": statistics.median(far_ms),
            "cluster_arun_true_p99_ms": statistics.quantiles(far_ms, n=100)[98],
            "cluster_true_per_s": far_rate,
            "local_true_per_s": near_rate,
            "hub_cpu_ms_per_call": (_cpu_s(hub) - before) / (BOXES * EACH) * 1000,
        }
    finally:
        await asyncio.gather(*(local.call("sandbox.delete", wire.Ref(id=box.id)) for box in boxes))


async def _took(call: Callable[[], Awaitable[Any]]) -> float:
    begun = time.perf_counter()
    await call()
    return (time.perf_counter() - begun) * 1000


async def _rate(client: Any, bodies: list[wire.Run]) -> float:
    async def drive(body: wire.Run) -> None:
        for _ in range(EACH):
            await client.call("session.run", body)

    begun = time.perf_counter()
    await asyncio.gather(*(drive(body) for body in bodies))
    return len(bodies) * EACH / (time.perf_counter() - begun)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _round_trip() -> float:
    """Milliseconds for a byte there and back over TCP on the loopback, between two threads."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        with socket.create_connection(door.getsockname()) as mine:
            other, _ = door.accept()

            def echo() -> None:
                while data := other.recv(64):
                    other.sendall(data)

            threading.Thread(target=echo, daemon=True).start()
            for sock in (mine, other):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            took = []
            for _ in range(CALLS):
                begun = time.perf_counter()
                mine.sendall(b"x")
                mine.recv(64)
                took.append((time.perf_counter() - begun) * 1000)
        return statistics.median(took)


def _decision() -> float:
    """CPU milliseconds to place one of ALIVE sandboxes on NODES nodes."""
    scheduler = Scheduler("spread", 64)
    for number in range(NODES):
        load = Load(room=10_000, limit=100, busy=0)
        scheduler.join(f"n{number}", 16, 2**38, 1_000_000, ["base"], load)
    config = SandboxConfig()
    want = Want(owner="me", cpus=config.cpus, memory=config.memory_bytes, pids=config.pids, image="base")
    fields = {"account": "me", "cpus": want.cpus, "memory": want.memory, "pids": want.pids, "image": "base"}
    for number in range(ALIVE):
        scheduler.put(f"n{number % NODES}", BoxRow(id=str(number), name=str(number), **fields))
    begun = time.process_time()
    for _ in range(DECISIONS):
        _, ticket = scheduler.place(want)
        scheduler.settle(ticket)
    return (time.process_time() - begun) / DECISIONS * 1000
