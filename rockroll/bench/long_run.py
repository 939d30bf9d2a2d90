"""Whether a long run stays as large and as fast as it was.

In: a recipe, a number of steps. Out: a table of memory, open files, threads, processes, disk and seconds a step as the
run goes on; exit code 1 where one of them grew between the second quarter and the last. Leaves the run to
`rockroll train`, started as a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_MB = 2**20
GROWTH: dict[str, Callable[[float], float]] = {
    "memory_mb": lambda before: 0.05 * before + 16,
    "files": lambda before: 4,
    "threads": lambda before: 4,
    "processes": lambda before: 0,
    "disk_mb": lambda before: 0.1 * before + 16,
    "step_s": lambda before: 0.25 * before,
}
"""How much more the median of the last quarter may be than that of the second: the first warms up."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run, at one step."""

    step: int
    memory_mb: float
    """Proportional set size of all processes of the run."""
    files: float
    threads: float
    processes: float
    disk_mb: float
    """The run directory, but for its checkpoints, whose number alternates."""
    step_s: float
    """Seconds a step since the last time."""


def grown(found: Sequence[Measured]) -> list[str]:
    """What grew beyond its bound, a sentence each. found: in the order of steps, eight at least."""
    if len(found) < 8:
        raise ValueError(f"growth shows in eight measurements or more; got {len(found)}")
    quarter = len(found) // 4
    told = []
    for name, most in GROWTH.items():
        before = median(getattr(each, name) for each in found[quarter : 2 * quarter])
        after = median(getattr(each, name) for each in found[-quarter:])
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


def measure(pid: int, run: Path, step: int, step_s: float) -> Measured:
    """What the run's processes and directory take now."""
    memory = files = threads = processes = 0
    for one in family(pid):
        at = Path(f"/proc/{one}")
        try:
            lines = (at / "smaps_rollup").read_text().splitlines()
            memory += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            files += len(list((at / "fd").iterdir()))
            threads += len(list((at / "task").iterdir()))
            processes += 1
        except (OSError, StopIteration):
            continue
    disk = 0
    for path in run.rglob("*"):
        if "checkpoints" not in path.parts and "weights" not in path.parts:
            try:
                disk += path.stat().st_size if path.is_file() else 0
            except OSError:
                continue
    return Measured(
        step=step,
        memory_mb=memory / 1024,
        files=files,
        threads=threads,
        processes=processes,
        disk_mb=disk / _MB,
        step_s=step_s,
    )


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
    every, found = max(1, steps // 32), list[Measured]()
    print("  step  memory MB  files  threads  processes  disk MB  s a step", flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        since, at = time.monotonic(), 0
        try:
            for line in process.stdout:  # one a step
                word, _, rest = line.partition(" ")
                step = int(rest.split()[0]) if word == "step" else 0
                if step and step % every == 0:
                    now = time.monotonic()
                    one = measure(process.pid, run, step, (now - since) / (step - at))
                    since, at = now, step
                    found.append(one)
                    print(
                        f"{one.step:6} {one.memory_mb:10.1f} {one.files:6.0f} {one.threads:8.0f} {one.processes:10.0f} "
                        f"{one.disk_mb:8.2f} {one.step_s:9.3f}",
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
