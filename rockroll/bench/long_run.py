"""Whether a long run stays as large and as fast as it was.

In: a recipe, a number of steps. Out: a table of memory, open files, threads, processes, containers, disk, seconds and
processor seconds a step as the run goes on; exit code 1 where one of them grew between the second quarter and the last.
Leaves the run to `rockroll train`, started as a process of its own; the node that holds the sandboxes is measured with
it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rockroll import home, rpc
from rockroll.errors import PeerLost
from rockroll.sandbox.container import runtime
from rockroll.sandbox.container.podman import HOME_LABEL
from rockroll.sandbox.node_client import address_path
from rockroll.sandbox.wire import Empty, NodeInfo

_MB = 2**20
GROWTH: dict[str, Callable[[float], float]] = {
    "memory_mb": lambda before: 0.05 * before + 16,
    "files": lambda before: 0.04 * before + 4,
    "threads": lambda before: 4,
    "processes": lambda before: 1,
    "containers": lambda before: 1,
    "disk_mb": lambda before: 0.1 * before + 16,
    "step_s": lambda before: 0.25 * before,
    "cpu_s": lambda before: 0.2 * before,
}
"""How much more the last quarter may have than the second: the first warms up. Of memory, disk and times the medians
are compared; of the rest the least, since shells and commands of sandboxes come and go."""
_LEAST = ("files", "threads", "processes", "containers")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run, at one step."""

    step: int
    memory_mb: float
    """Proportional set size of all processes of the run and of the node."""
    files: float
    threads: float
    processes: float
    containers: float
    """Of this home, whatever their state; 0 where no sandbox is used."""
    disk_mb: float
    """What the run directory takes, but for its checkpoints, whose number alternates; and the node's directory."""
    step_s: float
    """Seconds a step since the last time."""
    cpu_s: float
    """Processor seconds a step since then, of run and node: what a busy machine leaves alone."""
    at: tuple[float, float] = (0.0, 0.0)
    """When it was measured, and the processor seconds by then."""


def grown(found: Sequence[Measured]) -> list[str]:
    """What grew beyond its bound, a sentence each. found: in the order of steps, eight at least."""
    if len(found) < 8:
        raise ValueError(f"growth shows in eight measurements or more; got {len(found)}")
    quarter = len(found) // 4
    told = []
    for name, most in GROWTH.items():
        of = min if name in _LEAST else median
        before = of([getattr(each, name) for each in found[quarter : 2 * quarter]])
        after = of([getattr(each, name) for each in found[-quarter:]])
        if after - before > most(before):
            told.append(f"{name} grew from {before:.4g} to {after:.4g}, and may by {most(before):.3g}")
    return told


def family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:  # it ended meanwhile
                continue
    return found


def node() -> int | None:
    """The process of this home's node; None where none answers."""

    async def ask() -> int:
        client = await rpc.connect(address_path().read_text())
        try:
            return (await client.call("node.info", Empty(), type=NodeInfo)).pid
        finally:
            await client.close()

    try:
        return asyncio.run(ask())
    except (FileNotFoundError, PeerLost):
        return None


def containers() -> int:
    """This home's, whatever their state."""
    command = [*runtime.rootless_prefix(), runtime.podman_binary(), "ps", "--all", "--quiet"]
    command += ["--filter", f"label={HOME_LABEL}={home.home_id()}"]
    told = subprocess.run(command, env=runtime.environment(), capture_output=True, text=True, check=True)
    return len(told.stdout.split())


def processor_s(pids: Sequence[int]) -> float:
    """Seconds that these processes, and those that they have waited for, have had of a processor."""
    ticks = 0
    for one in pids:
        try:
            said = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        ticks += sum(map(int, said[11:15]))  # proc(5): utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(pid: int, run: Path, step: int, steps: int, before: tuple[float, float]) -> Measured:
    """What the run's processes and directory take now, and the node's where there is one.

    steps: done since `before`, when the clock (time.monotonic) and the processor seconds were so much.
    """
    now = time.monotonic()
    memory = files = threads = processes = 0
    holder = node()
    every = [*family(pid), *(family(holder) if holder else [])]
    spent = processor_s(every)
    for one in every:
        at = Path(f"/proc/{one}")
        try:
            lines = (at / "smaps_rollup").read_text().splitlines()
            memory += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            files += len(list((at / "fd").iterdir()))
            threads += len(list((at / "task").iterdir()))
            processes += 1
        except (OSError, StopIteration):
            continue
    disk = sum(map(_disk, run.rglob("*"))) + (sum(map(_disk, home.node_dir().rglob("*"))) if holder else 0)
    return Measured(
        step=step,
        memory_mb=memory / 1024,
        files=files,
        threads=threads,
        processes=processes,
        containers=containers() if holder else 0,
        disk_mb=disk / _MB,
        step_s=(now - before[0]) / steps,
        cpu_s=(spent - before[1]) / steps,
        at=(now, spent),
    )


def _disk(path: Path) -> int:
    """Bytes that a file takes, holes apart: a box's disk is mostly one."""
    if "checkpoints" in path.parts or "weights" in path.parts:
        return 0
    try:
        return path.stat().st_blocks * 512 if path.is_file() else 0
    except OSError:  # it went meanwhile
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/long-run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", nargs="?", default="recipes/long.yaml")
    parser.add_argument("--steps", type=int, default=3000, help="default: 3000")
    parser.add_argument("--run-dir", type=Path, help="kept there; default: a directory that goes at the end")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `rockroll train`")
    asked = parser.parse_args()
    if asked.steps < 16:
        parser.error(f"--steps is at least 16, or there is no growth to see; got {asked.steps}")
    with tempfile.TemporaryDirectory(prefix="rockroll-long-") as folder:
        return _run(asked.recipe, asked.steps, asked.run_dir or Path(folder) / "run", asked.set)


def _run(recipe: str, steps: int, run: Path, settings: Sequence[str]) -> int:
    more = [part for each in (f"steps={steps}", *settings) for part in ("--set", each)]
    command = [sys.executable, "-u", "-m", "rockroll", "train", recipe, "--run-dir", str(run), *more]
    every, found = max(1, steps // 64), list[Measured]()
    print("  step  memory MB  files  threads  processes  containers  disk MB  s a step  CPU s a step", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        before, at = (time.monotonic(), 0.0), 0
        try:
            for line in process.stdout:  # one a step
                word, _, rest = line.partition(" ")
                step = int(rest.split()[0]) if word == "step" else 0
                if step and step % every == 0:
                    one = measure(process.pid, run, step, step - at, before)
                    before, at = one.at, step
                    found.append(one)
                    print(
                        f"{one.step:6} {one.memory_mb:10.1f} {one.files:6.0f} {one.threads:8.0f} {one.processes:10.0f} "
                        f"{one.containers:11.0f} {one.disk_mb:8.2f} {one.step_s:9.3f} {one.cpu_s:13.3f}",
                        flush=True,
                    )
                elif not step:
                    print(line, end="", flush=True)
        except KeyboardInterrupt:
            process.wait()  # the terminal told it too
            raise
    if process.returncode:
        return process.returncode
    told = grown(found)
    print("\n".join(told) or f"nothing grew in {steps} steps")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
