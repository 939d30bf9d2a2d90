"""A box's files on the host cost no descriptor each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rockroll.sandbox.linux import kept
from rockroll.sandbox.linux.kept import KeptFile


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT", 4)
    monkeypatch.setattr(kept, "_open", type(kept._open)())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_any_number_of_files_holds_few_descriptors_and_each_reads_and_writes(tmp_path: Path) -> None:
    before = descriptors()
    files = [KeptFile(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(50)]
    for number, file in enumerate(files):
        os.pwrite(file.fd(), b"%d" % number, 0)
    assert [os.pread(file.fd(), 9, 0) for file in files] == [b"%d" % n for n in range(50)]
    assert descriptors() - before == 4
    for file in files:
        file.close()
    assert descriptors() == before


def test_the_one_that_is_used_stays_open(tmp_path: Path) -> None:
    busy = KeptFile(tmp_path / "busy", os.O_RDWR | os.O_CREAT)
    fd = busy.fd()
    for number in range(20):
        KeptFile(tmp_path / str(number), os.O_RDWR | os.O_CREAT)
        assert busy.fd() == fd


def test_a_closed_one_stays_closed(tmp_path: Path) -> None:
    file = KeptFile(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    file.close()
    file.close()
    assert file.closed
    with pytest.raises(OSError, match="closed"):
        file.fd()


def test_one_that_somebody_removed_is_not_made_again(tmp_path: Path) -> None:
    file = KeptFile(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    others = [KeptFile(tmp_path / str(n), os.O_RDWR | os.O_CREAT) for n in range(4)]
    (tmp_path / "a").unlink()
    with pytest.raises(FileNotFoundError):
        file.fd()
    file.close()
    assert len(others) == 4


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError):
        KeptFile(tmp_path / "link")
