"""What counts as growth in a long run, and that a process is measured with those below it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rockroll.bench.long_run import GROWTH, Measured, family, grown, measure

FLAT = Measured(step=0, memory_mb=1000.0, files=60, threads=40, processes=3, containers=2, disk_mb=20.0, step_s=0.5,
                cpu_s=0.4)  # fmt: skip


def test_a_run_that_is_flat_has_not_grown_however_it_began() -> None:
    warm = [dataclasses.replace(FLAT, memory_mb=100.0, disk_mb=1.0)] * 8
    assert grown([*warm, *[FLAT] * 24]) == []


@pytest.mark.parametrize("name", GROWTH)
def test_each_growth_is_told(name: str) -> None:
    rising = [dataclasses.replace(FLAT, **{name: getattr(FLAT, name) * (1 + n / 10)}) for n in range(32)]
    (told,) = grown(rising)
    assert told.startswith(f"{name} grew from ")


def test_a_shell_that_comes_and_goes_is_no_growth() -> None:
    busy = dataclasses.replace(FLAT, files=90, processes=9, containers=3)
    assert grown([*[FLAT] * 16, *[busy] * 15, FLAT]) == []


def test_a_single_slow_step_is_no_growth() -> None:
    assert grown([*[FLAT] * 31, dataclasses.replace(FLAT, step_s=99.0)]) == []


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(ValueError, match="eight measurements or more; got 3"):
        grown([FLAT] * 3)


def test_a_process_is_measured_with_those_below_it(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "w").write_bytes(b"\0" * 2**21)
    (tmp_path / "log").write_bytes(b"\0" * 2**20)
    waits = [sys.executable, "-c", "print('up', flush=True); input()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"up\n"
        assert child.pid in family(os.getpid())
        begun = time.monotonic() - 1, 0.0
        found = measure(os.getpid(), tmp_path, 5, 2, begun)
        alone = measure(child.pid, tmp_path, 5, 2, begun)
        assert alone.step_s >= 0.5 and 0 < alone.cpu_s < found.cpu_s and alone.containers == 0
        assert found.processes >= 2 and found.memory_mb > alone.memory_mb > 1 and alone.processes == 1
        assert found.disk_mb == 1.0
        child.communicate(b"\n")
