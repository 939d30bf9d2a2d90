"""placement.on_ray.trees: folders from one machine to another: whole, checked, once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rockroll import rpc
from rockroll.errors import HostError
from rockroll.placement.on_ray import trees


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[rpc.Client]:
    """A machine that gives folders away, over tcp with a key."""
    key = tmp_path / "key"
    server = rpc.Server("tcp://127.0.0.1:0", trees.handlers(), types=trees.TYPES, key=key)
    await server.start()
    client = await rpc.connect(server.address, key)
    yield client
    await client.close()
    await server.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "deep" / "er").mkdir(parents=True)
    (path / "deep" / "er" / "weights").write_bytes(os.urandom(5 * trees.PIECE + 17))
    (path / "empty").touch()
    (path / "link").symlink_to(path / "empty")
    return path


async def test_a_folder_arrives_as_it_was(source: rpc.Client, model: Path, tmp_path: Path) -> None:
    got = await trees.fetch(source, str(model), tmp_path / "there")
    assert trees.tree(got) == trees.tree(model)
    assert got.name == trees.tree(model).digest


async def test_two_that_ask_at_once_have_it_sent_once(
    source: rpc.Client, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    copy = trees._copy

    async def counted(*args: object) -> None:
        sent.append(str(args[1]))
        await copy(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(trees, "_copy", counted)
    got = await asyncio.gather(*(trees.fetch(source, str(model), tmp_path / "there") for _ in range(3)))
    assert len(set(got)) == 1 and len(sent) == 3  # files
    os.utime(model / "empty")
    await trees.fetch(source, str(model), tmp_path / "there")
    assert len(sent) == 3


async def test_other_contents_are_another_folder(source: rpc.Client, model: Path, tmp_path: Path) -> None:
    first = await trees.fetch(source, str(model), tmp_path / "there")
    (model / "empty").write_text("not any more")
    second = await trees.fetch(source, str(model), tmp_path / "there")
    assert first != second and (second / "empty").read_text() == "not any more"


async def test_of_what_is_written_again_and_again_two_stay(source: rpc.Client, model: Path, tmp_path: Path) -> None:
    found = []
    for number in range(4):
        (model / "empty").write_text(str(number))
        found.append(await trees.fetch_latest(source, str(model), tmp_path / "there"))
    assert [each.exists() for each in found] == [False, False, True, True]


async def test_a_file_that_changes_while_it_is_sent_is_refused(
    source: rpc.Client, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "_digest", lambda *_: "0" * 32)
    with pytest.raises(HostError, match="changed while it was sent"):
        await trees.fetch(source, str(model), tmp_path / "there")


async def test_a_folder_that_is_not_there_is_one_sentence(source: rpc.Client, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="there is no folder /nowhere"):
        await trees.fetch(source, "/nowhere", tmp_path / "there")
