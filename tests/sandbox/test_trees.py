"""What upload, download and their small relatives promise on a real box, whatever the box does meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rockroll import Sandbox, SandboxConfig, rpc
from rockroll.errors import FileError, SandboxError, SandboxLost, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.fs.tree import Enter, File, Part

SMALL = SandboxConfig(memory="128m", pids=64)
pytestmark = pytest.mark.usefixtures("node")


@pytest.fixture
async def box(node: rpc.Client) -> AsyncIterator[Sandbox]:
    async with Sandbox(SMALL) as sandbox:
        yield sandbox


async def out(box: Sandbox, command: str) -> str:
    """Standard output, stripped, of a command that must do well."""
    done = await box.arun(command, timeout=20)
    assert (done.outcome, done.exit_code) == ("ok", 0), done
    return done.stdout.decode().strip()


def tree(at: Path) -> Path:
    (at / "bin").mkdir(parents=True)
    (at / "empty").mkdir()
    (at / "bin/run").write_bytes(b"#!/bin/sh\necho it runs\n")
    (at / "bin/run").chmod(0o755)
    (at / "large").write_bytes(os.urandom(3_000_000))
    (at / "link").symlink_to("bin/run")
    os.link(at / "large", at / "bin/same")
    for name in (b"\xff\xfe", b"new\nline", b"-rf"):
        (at / os.fsdecode(name)).write_bytes(name)
    os.utime(at / "large", ns=(1, 1_234_567_890_123_456_789))
    return at


def facts(top: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything of a tree that is to come over."""
    found = {}
    for path in [top, *top.rglob("*")]:
        status = path.lstat()
        data = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(top))] = status.st_mode, status.st_mtime_ns, data
    return found


async def test_a_tree_goes_up_and_comes_back_the_same(box: Sandbox, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    up = await box.upload(source, "/srv/a/tree")
    seen = await out(box, "cd /srv/a/tree; ./link; stat -c %U:%G . bin large link | sort -u; stat -c %h large")
    assert seen == "it runs\nroot:root\n2"
    down = await box.download("/srv/a/tree", tmp_path / "back")
    assert facts(source) == facts(tmp_path / "back")
    assert (tmp_path / "back/large").stat().st_ino == (tmp_path / "back/bin/same").stat().st_ino
    assert (tmp_path / "back").stat().st_uid == os.getuid()
    assert up == down
    assert (up.files, up.folders, up.links, up.left_out_count) == (6, 3, 1, 0)


async def test_what_goes_up_belongs_to_the_boxs_user(tmp_path: Path) -> None:
    async with Sandbox(SandboxConfig(memory="128m", pids=64, user="1234:99")) as box:
        await box.upload(tree(tmp_path / "source"), "/tmp/tree")
        await box.upload(tmp_path / "source/large", "/tmp/large")
        seen = await out(
            box, "stat -c %u:%g /tmp/tree /tmp/tree/bin/* /tmp/tree/link /tmp/large | sort -u; rm -r /tmp/tree"
        )
        assert seen == "1234:99"


async def test_a_box_without_tar_python_curl_or_mkdir_is_no_hindrance(box: Sandbox, tmp_path: Path) -> None:
    await out(box, "cd /usr/bin; rm -f tar python3* perl* curl mkdir ln cp mv cat ls dd touch stat chmod chown mkfifo")
    source = tree(tmp_path / "source")
    await box.upload(source, "/srv/tree")
    await box.download("/srv/tree", tmp_path / "back")
    assert facts(source) == facts(tmp_path / "back")
    await box.mkdir("/srv/made/deep")
    await box.move("/srv/tree/large", "/srv/made/deep/moved")
    assert (await box.stat("/srv/made/deep/moved")).size == 3_000_000
    await box.remove("/srv/tree", recursive=True)
    assert not await box.exists("/srv/tree")


async def test_four_sparse_gigabytes_go_both_ways_in_seconds_and_take_no_room(box: Sandbox, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(4 << 30)
        file.seek(2 << 30)
        file.write(b"middle")
    begun = time.monotonic()
    await box.upload(tmp_path / "sparse", "/srv/sparse")
    await box.download("/srv/sparse", tmp_path / "back")
    assert time.monotonic() - begun < 10
    assert (
        await out(box, "stat -c '%s' /srv/sparse; tail -c +2147483649 /srv/sparse | head -c 6") == "4294967296\nmiddle"
    )
    assert int(await out(box, "stat -c %b /srv/sparse")) < 1000
    assert ((tmp_path / "back").stat().st_size, (tmp_path / "back").stat().st_blocks < 1000) == (4 << 30, True)


async def test_a_large_file_takes_little_memory_on_either_side(box: Sandbox, node: rpc.Client, tmp_path: Path) -> None:
    pid = (await node.call("node.info", wire.Empty(), type=wire.NodeInfo)).pid
    with (tmp_path / "large").open("wb") as file:
        for _ in range(200):
            file.write(os.urandom(1 << 20))
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is counted from now on
    before = peak_kb(pid), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await box.upload(tmp_path / "large", "/srv/large")
    await box.download("/srv/large", tmp_path / "back")
    assert peak_kb(pid) - before[0] < 60_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before[1] < 60_000
    assert (tmp_path / "back").read_bytes() == (tmp_path / "large").read_bytes()


def peak_kb(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


async def test_five_hundred_folders_deep(box: Sandbox, deep_path: Path) -> None:
    await out(box, f"mkdir -p /srv/{'d/' * 500}; echo x >/srv/{'d/' * 500}f")
    done = await box.download("/srv", deep_path / "deep")
    assert (done.folders, done.files) == (501, 1)
    done = await box.upload(deep_path / "deep", "/root/deep")
    assert (done.folders, done.files) == (501, 1)
    assert len(await box.list_files("/root/deep", recursive=True)) == 501
    await box.remove("/root/deep", recursive=True)
    assert not await box.exists("/root/deep")


# ---- hostile boxes -------------------------------------------------------------------------------------------------


async def test_a_folder_swapped_for_a_link_all_the_time_leads_nowhere(box: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "host"
    secret.mkdir()
    (secret / "f").write_text("the host's")
    source = tmp_path / "source"
    for i in range(20):
        (source / f"d/e{i}").mkdir(parents=True)
        (source / f"d/e{i}/f").write_bytes(b"mine")
    await box.upload(source, "/srv/t")
    swaps = (
        f"cd /srv/t; (while :; do mv d away; ln -s {secret} d; rm d; ln -s /etc d; rm d; mv away d; "
        f"mv d/e1 e; ln -s {secret} d/e1; rm d/e1; ln -s /etc d/e1; rm d/e1; mv e d/e1; done) 2>/dev/null & echo $!"
    )
    pid = await out(box, swaps)
    etc = await out(box, "ls -A /etc | sort")
    downloads = uploads = 0
    for i in range(40):
        with contextlib.suppress(FileError):
            await box.upload(source, "/srv/t")
            uploads += 1
        with contextlib.suppress(FileError):
            await box.download("/srv/t", tmp_path / f"back{i}", links="all")
            downloads += 1
    await out(box, f"kill {pid}")
    assert downloads and uploads
    assert [(path.name, path.read_text()) for path in secret.iterdir()] == [("f", "the host's")]
    assert await out(box, "ls -A /etc | sort") == etc, "not even another folder of the box was written to"
    got = [path for path in tmp_path.glob("back*/**/f") if not any(above.is_symlink() for above in path.parents)]
    assert got and {path.read_bytes() for path in got} == {b"mine"}


async def test_fifos_sockets_and_devices_are_left_out_and_never_opened(box: Sandbox, tmp_path: Path) -> None:
    await out(
        box, "mkdir /srv/s; cd /srv/s; mkfifo file.txt; mknod dev c 1 3 || true; echo ok >ok; ln -s /dev/zero endless"
    )
    script = "import socket; socket.socket(socket.AF_UNIX).bind('/srv/s/sock')"
    assert (await box.execute(["python3", "-c", script])).exit_code == 0
    done = await asyncio.wait_for(box.download("/srv/s", tmp_path / "s"), 10)
    assert {left.path: left.why for left in done.left_out} == {
        "file.txt": "a FIFO",
        "sock": "a socket",
        "endless": "a link that leads out of the tree, to /dev/zero",
    }
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["ok"]
    with pytest.raises(FileError, match="FIFO"):
        await box.download("/srv/s/file.txt", tmp_path / "x")
    with pytest.raises(FileError, match="character device"):
        await box.download("/dev/zero", tmp_path / "x")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(FileError, match="FIFO"):
        await box.upload(tmp_path / "file.txt", "/srv/s/file.txt")


async def test_the_kernels_own_files_are_no_tree_and_are_not_written(box: Sandbox, tmp_path: Path) -> None:
    done = await box.download("/dev", tmp_path / "dev")
    left_out = {left.path: left.why for left in done.left_out}
    assert (left_out["pts"], left_out["null"]) == ("a kernel file system (devpts)", "a character device")
    assert not (tmp_path / "dev/pts").exists()
    await out(box, "ln -s /proc/self/oom_score_adj /srv/p; ln -s /proc /srv/proc")
    for target in ("/proc/1/oom_score_adj", "/srv/proc/1/oom_score_adj"):
        with pytest.raises(FileError, match="kernel"):
            await box.write_file(target, "-1000")
        (tmp_path / "score").write_text("-1000")
        with pytest.raises(FileError, match="kernel"):
            await box.upload(tmp_path / "score", target)
    with pytest.raises(FileError, match="proc is no tree"):
        await box.download("/srv/proc", tmp_path / "proc")
    assert (await box.read_file("/proc/version")).startswith(b"Linux")


async def test_a_link_in_the_box_cannot_carry_an_upload_out_of_it(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "f").write_text("up")
    await out(box, f"ln -s {tmp_path}/host /srv/abs; ln -s ../../../../../../..{tmp_path}/host /srv/rel")
    for name in ("abs", "rel"):
        with contextlib.suppress(FileError):
            await box.upload(tmp_path / "f", f"/srv/{name}/f")
        with contextlib.suppress(FileError):
            await box.upload(tmp_path / "f", f"/srv/{name}/../../../../..{tmp_path}/host/g")
    assert not list((tmp_path / "host").iterdir())


async def test_a_file_that_is_written_all_the_time_is_copied_and_told(box: Sandbox, tmp_path: Path) -> None:
    pid = await out(box, "head -c 64M /dev/zero >/srv/busy; (while :; do echo x; done >>/srv/busy) & echo $!")
    told = False
    for i in range(3):  # each takes a tenth of a second, in which the box writes
        done = await box.download("/srv", tmp_path / f"b{i}")
        told = told or [changed.path for changed in done.changed] == ["busy"]
    await out(box, f"kill {pid}")
    assert told


# ---- what goes wrong -----------------------------------------------------------------------------------------------


async def test_a_full_box_says_so_and_keeps_no_half_file(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(1 << 20) * 80)
    with pytest.raises(FileError, match="/dev/shm/large cannot be written: no space is left in the sandbox"):
        await box.upload(tmp_path / "large", "/dev/shm/large")
    assert await box.list_files("/dev/shm") == []


async def test_a_read_only_target_says_so(tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir()
    (tmp_path / "ro").chmod(0o755)
    (tmp_path / "f").write_text("x")
    config = SandboxConfig(memory="128m", pids=64, mounts=(f"{tmp_path}/ro:/mnt:ro",))
    async with Sandbox(config) as box:
        for source in (tmp_path / "f", tree(tmp_path / "tree")):
            with pytest.raises(FileError, match="Read-only"):
                await box.upload(source, "/mnt/x")
    assert not list((tmp_path / "ro").iterdir())


async def test_a_cancelled_copy_leaves_no_half_file_and_the_box_usable(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(1 << 20) * 120)
    begun = asyncio.Event()
    copying = asyncio.ensure_future(
        box.upload(tmp_path / "large", "/srv/large", progress=lambda files, sent: begun.set())
    )
    await begun.wait()
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    async with asyncio.timeout(5):
        while await box.list_files("/srv"):  # the cancellation is on its way to the node
            await asyncio.sleep(0.01)
    await box.upload(tmp_path / "large", "/srv/large")
    downloading = asyncio.ensure_future(box.download("/srv/large", tmp_path / "d/back"))
    await asyncio.sleep(0.05)
    downloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await downloading
    assert not list((tmp_path / "d").iterdir())


async def endless(taken: asyncio.Event) -> AsyncIterator[Part]:
    yield [Enter(b"")]
    while True:
        yield [File(b"f", 0o644, 0, 1, 0, b"x")]
        taken.set()
        await asyncio.sleep(0.001)


async def test_a_box_that_ends_ends_its_copies(tmp_path: Path) -> None:
    async with Sandbox(SMALL) as box:
        taken, body = asyncio.Event(), wire.PathOf(id=box.id, path=b"/srv/t")
        upload = asyncio.ensure_future(box._call("file.put", body, parts=endless(taken)))
        await taken.wait()
        await box.stop()
        with pytest.raises(SandboxLost, match="ended while its files were copied"):
            await upload
        with pytest.raises(SandboxLost, match="stopped"):
            await box.download("/srv/t", tmp_path / "t")


async def test_a_box_that_is_made_new_ends_its_copies_and_watches_first(box: Sandbox) -> None:
    taken, body = asyncio.Event(), wire.PathOf(id=box.id, path=b"/srv/t")
    upload = asyncio.ensure_future(box._call("file.put", body, parts=endless(taken)))
    await taken.wait()
    async with box.watch("/srv") as changes:
        recycled = await box.recycle()
        assert recycled.ok, recycled.reason
        with pytest.raises(SandboxError, match="made new while"):
            await upload
        async with asyncio.timeout(5):
            assert not [event async for event in changes if event.path != "/srv/t"]
    assert await box.list_files("/srv") == []


async def test_mistakes_are_answered_with_what_to_do(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    for wrong, said in (
        (box.upload(tmp_path / "f", "/srv"), "is a folder in the sandbox; to copy into it, write /srv/"),
        (box.upload(tmp_path / "f", "srv"), "absolute"),
        (box.upload(tmp_path / "nothing", "/srv/x"), "nothing: no file or folder of that name on this side"),
        (box.download("/nothing", tmp_path / "x"), "/nothing: no such file or folder in the sandbox"),
        (box.download("/etc/hostname", tmp_path / "f/x"), "cannot be made on this side"),
        (box.stat("/nothing"), "/nothing: no such file or folder in the sandbox"),
        (box.remove("/nothing"), "/nothing: no such file or folder in the sandbox"),
        (box.remove("/etc"), "recursive=True"),
        (box.remove("/"), "no name in a folder"),
        (box.remove("/proc", recursive=True), "/proc cannot be removed"),
        (box.move("/etc", "/etc/below"), "cannot go into itself"),
        (box.move("/etc/hostname", "/usr"), "folder is there"),
        (box.list_files("/etc/hostname"), "/etc/hostname cannot be listed: Not a directory"),
    ):
        with pytest.raises(FileError) as caught:
            await wrong
        assert said in str(caught.value)
    with pytest.raises(UsageError, match="str, or bytes"):
        await box.read_file(3)  # type: ignore[arg-type]


async def test_a_file_that_may_not_be_read_is_an_error_that_names_it(box: Sandbox) -> None:
    write_only = "/proc/sys/vm/compact_memory"  # not even by root
    with pytest.raises(FileError, match=f"{write_only}: it is the kernel's, and not everybody may read it"):
        await box.upload(write_only, "/srv/x")
    assert not await box.exists("/srv/x")


# ---- small things --------------------------------------------------------------------------------------------------


async def test_stat_exists_mkdir_move_and_remove(box: Sandbox) -> None:
    await box.mkdir("/srv/a/b", mode=0o700)
    await box.mkdir("/srv/a/b")
    await box.write_file("/srv/a/b/f", "four")
    await out(box, "ln -s b/f /srv/a/link; ln -s nowhere /srv/a/broken")
    assert await out(box, "stat -c '%U %a' /srv/a /srv/a/b") == "root 755\nroot 700"
    assert ((await box.stat("/srv/a/link")).kind, (await box.stat("/srv/a/link")).size) == ("file", 4)
    seen = await box.stat("/srv/a/link", follow=False)
    assert (seen.kind, seen.target, seen.name) == ("link", "b/f", "link")
    assert abs((await box.stat("/srv/a/b/f")).mtime - time.time()) < 60
    assert [await box.exists(f"/srv/a/{name}") for name in ("b", "link", "broken", "b/f/g")] == [
        True,
        True,
        False,
        False,
    ]
    await box.move("/srv/a/b/f", "/srv/new/folder/g")
    await box.write_file("/srv/h", "other")
    await box.move("/srv/h", "/srv/new/folder/g")
    assert await box.read_file("/srv/new/folder/g") == b"other"
    await box.remove("/srv/a/broken")
    await box.remove("/srv/a/link")
    await box.remove("/srv/a", recursive=True)
    assert [entry.name for entry in await box.list_files("/srv", recursive=True)] == [
        "new",
        "new/folder",
        "new/folder/g",
    ]


async def test_names_that_are_not_utf8_are_listed_and_reached(box: Sandbox) -> None:
    await box.write_file(b"/srv/\xff/name\n", "bytes")
    (folder,) = await box.list_files("/srv")
    assert (folder.name, folder.raw) == ("\\xff", b"\xff")
    assert await box.read_file(b"/srv/" + folder.path_bytes + b"/name\n") == b"bytes"
    assert await box.read_file(os.fsdecode(b"/srv/\xff/name\n")) == b"bytes"
    assert [entry.path_bytes for entry in await box.list_files("/srv", recursive=True)] == [b"\xff", b"\xff/name\n"]


async def test_removing_a_tree_takes_links_not_what_they_point_to(box: Sandbox) -> None:
    await out(box, "mkdir -p /srv/keep /srv/t/d; echo x >/srv/keep/f; ln -s /srv/keep /srv/t/d/l; ln -s /etc /srv/t/e")
    await box.remove("/srv/t", recursive=True)
    assert await out(box, "cat /srv/keep/f; ls /etc/hostname") == "x\n/etc/hostname"


async def test_progress_is_told_both_ways(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    told: list[tuple[int, int]] = []
    await box.upload(tmp_path / "f", "/srv/f", progress=lambda *now: told.append(now))
    assert told[-1] == (1, 3_000_000)
    await box.download("/srv/f", tmp_path / "g", progress=lambda *now: told.append(now))
    assert told[-1] == (1, 3_000_000)
    assert len(told) > 4
