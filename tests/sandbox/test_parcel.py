"""A folder as a stream of bytes and back: nothing of a written layer is lost, and what would be is noticed."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rockroll.errors import SandboxError
from rockroll.sandbox.container import parcel
from tests.conftest import IS_ROOT

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="overlay marks and owners are root's to set")


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """One of each kind."""
    folder = tmp_path / "layer"
    (folder / "etc" / "opaque").mkdir(parents=True)
    (folder / "etc" / "file").write_bytes(os.urandom(700_000))
    os.link(folder / "etc" / "file", folder / "hard")
    (folder / "soft").symlink_to("nowhere/at all")
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "etc" / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(folder / "etc" / "opaque", "trusted.overlay.opaque", b"y")
    os.setxattr(folder / "etc" / "file", "user.mark", bytes(range(256)))
    os.chown(folder / "etc", 0x70000001, 0x70000002)
    (folder / "etc" / "file").chmod(0o6751)
    with (folder / "holes").open("wb") as file:
        file.truncate(40 << 20)
        file.seek(30 << 20)
        file.write(b"end")
    (folder / os.fsdecode(b"odd \xff\nname")).write_text("x")
    os.utime(folder / "etc", ns=(1_000_000_001, 2_000_000_003))
    return folder


async def moved(source: Path, target: Path) -> None:
    target.mkdir()
    await parcel.unpack(parcel.pack(source), target)


async def test_what_is_unpacked_has_the_digest_of_what_was_packed(layer: Path, tmp_path: Path) -> None:
    before = parcel.digest(layer)
    await moved(layer, tmp_path / "there")
    assert parcel.digest(tmp_path / "there") == before
    made = tmp_path / "there"
    assert os.getxattr(made / "etc" / "opaque", "trusted.overlay.opaque") == b"y"
    assert (made / "hard").stat().st_ino == (made / "etc" / "file").stat().st_ino
    assert (made / "holes").stat().st_blocks * 512 < 1 << 20
    assert (made / "etc" / "whiteout").stat().st_rdev == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: (layer / "etc" / "file").chmod(0o751),
        lambda layer: os.removexattr(layer / "etc" / "opaque", "trusted.overlay.opaque"),
        lambda layer: os.chown(layer / "etc", 0, 0),
        lambda layer: (layer / "soft").rename(layer / "softer"),
        lambda layer: ((layer / "hard").unlink(), (layer / "hard").write_bytes((layer / "etc" / "file").read_bytes())),
        lambda layer: os.utime(layer / "etc", ns=(1_000_000_001, 2_000_000_004)),
    ],
)
def test_the_digest_tells_any_two_apart(layer: Path, change: object) -> None:
    before = parcel.digest(layer)
    assert parcel.digest(layer) == before
    change(layer)  # type: ignore[operator]
    assert parcel.digest(layer) != before


async def test_a_socket_is_left_out(layer: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(layer / "sock"))
    await moved(layer, tmp_path / "there")
    assert not (tmp_path / "there" / "sock").exists()


async def test_what_ends_early_is_an_error(layer: Path, tmp_path: Path) -> None:
    async def half() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(parcel.pack(layer)) as pieces:
            yield await anext(pieces)
        raise SandboxError("the other side is gone")

    (tmp_path / "there").mkdir()
    with pytest.raises(SandboxError, match="the other side is gone"):
        await parcel.unpack(half(), tmp_path / "there")


async def test_no_archive_at_all_is_an_error(tmp_path: Path) -> None:
    async def noise() -> AsyncIterator[bytes]:
        yield os.urandom(20_000)

    (tmp_path / "there").mkdir()
    with pytest.raises(SandboxError, match="unpacked"):
        await parcel.unpack(noise(), tmp_path / "there")
