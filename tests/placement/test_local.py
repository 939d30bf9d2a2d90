"""placement.local: children are watched, told of, and gone at the end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from rockroll.errors import PeerLost, ProcessDied
from rockroll.placement.local import Processes


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module to run as a child: says a line, then sleeps, ignoring SIGTERM if told to."""
    (tmp_path / "childmod.py").write_text(
        "import signal, sys, time\n"
        "if 'stubborn' in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('line one', flush=True)\n"
        "if 'fail' in sys.argv: sys.exit('the disk is on fire')\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path / "home"))


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_child_that_dies_ends_the_work_and_shows_its_log(tmp_path: Path) -> None:
    async with Processes(tmp_path / "logs") as processes:
        await processes.start("engine", "childmod", "fail")
        with pytest.raises(ProcessDied, match=r"the engine process ended with exit code 1(?s:.*)the disk is on fire"):
            await asyncio.wait_for(processes.guard(asyncio.Event().wait()), 10)


async def test_what_a_child_takes_of_its_machine_is_known_while_it_runs(tmp_path: Path) -> None:
    async with Processes(tmp_path / "logs") as processes:
        child = await processes.start("engine-0", "childmod")
        (taken,) = processes.usage()
        assert (taken.name, taken.node) == ("engine-0", os.uname().nodename)
        assert taken.memory > 0
        await child.stop()
        assert processes.usage() == []


async def test_the_logs_of_children_are_bounded(tmp_path: Path) -> None:
    async with Processes(tmp_path / "logs") as processes:
        child = await processes.start("engine", "childmod")
        child.log.write_bytes(b"x" * 100 + b"\n")
        processes.bound_logs(None)
        assert child.log.stat().st_size >= 101
        processes.bound_logs(50)
        assert child.log.stat().st_size <= 50
        assert child.log.with_name("engine.log.1").stat().st_size >= 50


async def test_a_killed_child_is_named_with_its_signal(tmp_path: Path) -> None:
    async with Processes(tmp_path / "logs") as processes:
        child = await processes.start("trainer", "childmod")
        os.kill(child.process.pid, signal.SIGKILL)
        with pytest.raises(ProcessDied, match="the trainer process was killed by SIGKILL"):
            await asyncio.wait_for(processes.guard(asyncio.Event().wait()), 10)


async def test_a_death_explains_the_broken_connection_that_came_first(tmp_path: Path) -> None:
    async def work(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        raise PeerLost("closed")

    async with Processes(tmp_path / "logs") as processes:
        child = await processes.start("engine", "childmod")
        with pytest.raises(ProcessDied):
            await processes.guard(work(child.process.pid))


async def test_what_the_work_returns_or_raises_comes_back(tmp_path: Path) -> None:
    async def give(value: int) -> int:
        if value < 0:
            raise ValueError("negative")
        return value

    async with Processes(tmp_path / "logs") as processes:
        assert await processes.guard(give(3)) == 3
        with pytest.raises(ValueError, match="negative"):
            await processes.guard(give(-1))


async def test_at_the_end_no_child_and_no_socket_folder_is_left(tmp_path: Path) -> None:
    async with Processes(tmp_path / "logs") as processes:
        children = [await processes.start("a", "childmod"), await processes.start("b", "childmod")]
        runtime = processes.runtime
        assert runtime.is_dir()
    assert not any(alive(child.process.pid) for child in children)
    assert not runtime.exists()


async def test_a_folder_of_a_killed_run_is_removed_by_the_next(tmp_path: Path) -> None:
    async with Processes(tmp_path / "logs") as first:
        left = first.runtime.parent / "run-4194305-left"  # above any pid
        left.mkdir()
        async with Processes(tmp_path / "logs"):
            assert not left.exists()
            assert first.runtime.exists()
