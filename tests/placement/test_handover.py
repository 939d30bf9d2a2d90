"""Weights go through memory where everybody is on one host and it is free; what a killed run left there goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rockroll.placement import handover
from rockroll.placement.handover import Shelf, way

G = 2**30


@pytest.mark.parametrize(
    ("trainer", "engines", "size", "free", "available", "expected"),
    [
        ("a", ["a"], G, 8 * G, 16 * G, "memory"),
        ("a", ["a", "a", "a"], G, 8 * G, 16 * G, "memory"),  # several replicas map one copy
        ("a", [], G, 8 * G, 16 * G, "memory"),
        ("a", ["a", "b"], G, 8 * G, 16 * G, "disk"),  # another host has another memory
        ("a", ["b"], G, 8 * G, 16 * G, "disk"),
        ("a", ["a"], G, 2 * G, 4 * G, "memory"),  # the old and the new weights just fit
        ("a", ["a"], G, 2 * G - 1, 16 * G, "disk"),
        ("a", ["a"], G, 64 << 20, 16 * G, "disk"),  # a container's /dev/shm
        ("a", ["a"], G, 0, 16 * G, "disk"),  # none
        ("a", ["a"], G, 8 * G, 4 * G - 1, "disk"),  # /dev/shm promises more than there is memory
    ],
)
def test_the_way_follows_from_hosts_and_memory(
    trainer: str, engines: list[str], size: int, free: int, available: int, expected: str
) -> None:
    assert way(trainer, engines, size=size, free=free, available=available) == expected


def test_a_run_has_a_folder_in_memory_and_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path / "home"))
    with handover.folder(tmp_path / "disk", 1) as folder:
        assert folder.parent.parent == handover.SHARED_MEMORY and folder.parent.is_dir()
        assert folder.parent.stat().st_mode & 0o777 == 0o700, "nobody else reads the weights"
    assert not folder.parent.exists()
    with handover.folder(tmp_path / "disk", 1, engines=["elsewhere"]) as folder:
        assert folder == tmp_path / "disk"


def test_the_next_run_removes_what_a_killed_one_left_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path / "home"))
    code = (
        "import sys; from pathlib import Path; from rockroll.placement.handover import Shelf\n"
        "with Shelf(Path(sys.argv[1])) as folder:\n    folder.mkdir(); print(folder, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with Shelf(tmp_path):
            assert left.is_dir(), "its run lives"
        other.kill()
        other.wait()
        assert left.is_dir()
        with Shelf(tmp_path) as own:
            assert not left.parent.exists() and own.parent.exists()
    assert not list(tmp_path.glob("rockroll-*"))
