"""What is kept of a box's sessions: whole or said to be torn, private, and gone when it should be."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rockroll.sandbox.exec import saved
from rockroll.sandbox.exec.saved import Saved, SavedSession


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path))


async def test_the_last_state_of_each_session_is_kept_with_its_settings() -> None:
    box = Saved("b1")
    one, two = box.slot(saved.fresh("build/ü", {"A": "b"}, "/srv")), box.slot(saved.fresh("two", {}, None))
    one.keep(b"x=1\n" * 1000)
    one.keep(b"x=2\n")
    await asyncio.sleep(0)
    two.keep(b"y=\xff\0")
    two.close()
    assert box.load() == {
        "build/ü": SavedSession("build/ü", {"A": "b"}, "/srv", b"x=2\n"),
        "two": SavedSession("two", {}, None, b"y=\xff\0"),
    }
    one.close()


async def test_files_are_private_and_go_with_their_session_and_box() -> None:
    box = Saved("b2")
    box.slot(saved.fresh("one", {}, None)).close()
    box.slot(saved.fresh("two", {}, None)).close()
    assert {path.stat().st_mode & 0o777 for path in (saved.folder() / "b2").iterdir()} == {0o600}
    box.forget("one")
    assert list(box.load()) == ["two"]
    box.clear()
    assert not (saved.folder() / "b2").exists() and box.load() == {}


async def test_a_file_that_was_cut_off_is_no_state_and_says_so() -> None:
    box = Saved("b3")
    slot = box.slot(saved.fresh("one", {}, "/srv"))
    slot.keep(b"x=1\n" * 100)
    slot.close()
    (path,) = (saved.folder() / "b3").iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    assert box.load() == {"one": SavedSession("one", {}, "/srv", b"", whole=False)}
    path.write_bytes(b"\1\2")
    assert box.load() == {}
