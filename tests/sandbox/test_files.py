"""What file.write, file.read and file.list promise: whatever is in the box, no path leads out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rockroll.errors import FileError, SandboxLost
from rockroll.sandbox import wire
from rockroll.sandbox.fs import files
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def write(lab: Lab, path: str, data: bytes, **more: object) -> None:
    await lab.call("file.write", wire.WriteFile(id=lab.id, path=os.fsencode(path), data=data, **more))  # type: ignore[arg-type]


async def read(lab: Lab, path: str, **more: int) -> wire.FileChunk:
    return await lab.call("file.read", wire.ReadFile(id=lab.id, path=os.fsencode(path), **more))


async def test_bytes_go_in_and_out(shared: Lab) -> None:
    data = bytes(range(256)) * 5000
    await write(shared, "/srv/deep/er/file.bin", data)
    chunk = await read(shared, "/srv/deep/er/file.bin")
    assert (chunk.data, chunk.size, chunk.mode) == (data, len(data), 0o644)
    assert (await read(shared, "/srv/deep/er/file.bin", offset=255, limit=3)).data == b"\xff\0\1"
    assert (await read(shared, "/srv/deep/er/file.bin", offset=10**9)).data == b""
    assert await shared.out("stat -c '%U:%G %a' /srv/deep /srv/deep/er/file.bin") == "root:root 755\nroot:root 644"


async def test_write_replaces_append_adds_mode_is_set(shared: Lab) -> None:
    await write(shared, "/srv/tool", b"#!/bin/sh\necho long text\n", mode=0o755)
    await write(shared, "/srv/tool", b"#!/bin/sh\n", mode=0o755)
    await write(shared, "/srv/tool", b"echo ran\n", append=True)
    assert await shared.out("/srv/tool; stat -c %a /srv/tool") == "ran\n755"


async def test_the_box_may_use_what_was_written(shared: Lab) -> None:
    await write(shared, "/srv/mine", b"1")
    assert await shared.out("echo 2 >>/srv/mine; cat /srv/mine; rm /srv/mine") == "12"


async def test_a_folder_is_listed_with_kinds(shared: Lab) -> None:
    await shared.out("mkdir -p /srv/l/d; cd /srv/l; echo hello >f; ln -s f link; mkfifo pipe; chmod 600 f")
    listed = await shared.call("file.list", wire.ListFiles(id=shared.id, path=b"/srv/l"))
    assert [(e.name, e.kind) for e in listed] == [("d", "dir"), ("f", "file"), ("link", "link"), ("pipe", "other")]
    assert (listed[1].size, listed[1].mode) == (6, 0o600)


@pytest.mark.parametrize(
    "path", ["/srv/missing", "/srv", "/srv/fifo", "/dev/null", "/etc/passwd/x", "relative", "", "/a\0b"]
)
async def test_what_is_no_regular_file_is_refused_at_once(shared: Lab, path: str) -> None:
    await shared.out("[ -p /srv/fifo ] || mkfifo /srv/fifo")
    with pytest.raises(FileError):
        await read(shared, path)
    if path != "/srv/missing":
        with pytest.raises(FileError):
            await write(shared, path, b"x")


async def test_links_are_followed_inside_the_box_only(shared: Lab, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    up = "../" * 30
    await shared.out(f"cd /srv; ln -sfn {secret} out1; ln -sfn {up}{secret} out2; ln -sfn {tmp_path} outdir")
    await shared.out("cd /srv; ln -sfn /proc/1/root/etc/shadow magic; ln -sfn /etc/hostname inside; ln -sfn loop loop")
    for path in ("/srv/out1", "/srv/out2", "/srv/outdir/secret", f"/srv/{up}{secret}", str(secret)):
        with pytest.raises(FileError, match="no such file"):
            await read(shared, path)
    for path in ("/srv/magic", "/proc/1/root/etc/hostname", "/proc/self/exe", "/srv/loop"):
        with pytest.raises(FileError):
            await read(shared, path)
    assert (await read(shared, "/srv/inside")).data == b"sandbox"
    await shared.out(f"mkdir -p {tmp_path}")
    await write(shared, "/srv/outdir/planted", b"x")
    await write(shared, f"/srv/../../../{tmp_path}/planted2", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert await shared.out(f"cat {tmp_path}/planted {tmp_path}/planted2") == "xx"


async def test_a_link_swapped_during_the_call_leads_nowhere_either(shared: Lab, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("the host's")
    await shared.out("mkdir -p /srv/real; echo inside >/srv/real/f")
    swap = f"(while :; do ln -sfn {tmp_path} /srv/sw; ln -sfn /srv/real /srv/sw; done) & echo $!"
    pid = await shared.out(swap)
    for _ in range(200):
        try:
            assert (await read(shared, "/srv/sw/f")).data == b"inside\n"
            await write(shared, "/srv/sw/g", b"x")
        except FileError:
            continue
    await shared.run(f"kill {pid}")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


async def test_a_stopped_box_has_no_files_to_give(lab: Lab) -> None:
    await lab.call("sandbox.stop", wire.Ref(id=lab.id))
    with pytest.raises(SandboxLost, match="stopped"):
        await read(lab, "/etc/hostname")


async def test_a_folder_too_large_for_one_listing_is_walked_in_parts(
    shared: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_LISTED", 50)
    monkeypatch.setattr(files, "LISTED_AT_ONCE", 20)
    await shared.out("mkdir -p /srv/many/d/e; cd /srv/many; touch $(seq 60) d/e/f")
    with pytest.raises(FileError, match="more than 50 entries: walk it"):
        await shared.call("file.list", wire.ListFiles(id=shared.id, path=b"/srv/many"))
    walking = shared.handlers["file.walk"](wire.PathOf(id=shared.id, path=b"/srv/many"), shared.peer)
    parts = [[entry.name for entry in part] async for part in walking]
    assert sorted(name for part in parts for name in part) == sorted([*map(str, range(1, 61)), "d", "d/e", "d/e/f"])
    assert [len(part) for part in parts] == [20, 20, 20, 3]
    await shared.out("cd /srv/many; mkdir $(seq 101 160)")
    with pytest.raises(FileError, match="more than 50 folders side by side"):
        walking = shared.handlers["file.walk"](wire.PathOf(id=shared.id, path=b"/srv/many"), shared.peer)
        _ = [part async for part in walking]
    await shared.call("file.remove", wire.RemoveFile(id=shared.id, path=b"/srv/many", recursive=True))
    assert await shared.out("ls -d /srv/many || true") == ""
