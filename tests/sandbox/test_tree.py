"""What a copied tree promises without a box: everything comes over, and nothing outside the target is touched."""

from __future__ import annotations

import gc
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rockroll.errors import FileError
from rockroll.sandbox.client_files import _local_target
from rockroll.sandbox.fs.tree import (
    INLINE_BYTES,
    PART_BYTES,
    Copied,
    Enter,
    Extent,
    File,
    Leave,
    Link,
    Part,
    Same,
    Whole,
)
from rockroll.sandbox.fs.tree_read import read_tree
from rockroll.sandbox.fs.tree_write import TreeWriter
from rockroll.sandbox.linux.beneath import opened


def parts_of(source: Path) -> Iterator[Part]:
    with opened(os.open(source, os.O_PATH)) as fd:
        yield from read_tree(fd)


def copy(source: Path, target: Path, **how: str) -> Copied:
    return write(target, parts_of(source), **how)


def write(target: Path, parts: Iterator[Part] | list[Part], **how: str) -> Copied:
    with _local_target(target) as place:
        writer = TreeWriter(place, **how)  # type: ignore[arg-type]
        try:
            for part in parts:
                writer.write(part)
            return writer.done()
        finally:
            writer.close()


def small(name: bytes, data: bytes = b"x", number: int = 0) -> File:
    return File(name, 0o644, 0, len(data), number, data)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def everything(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}


# ---- what comes over -----------------------------------------------------------------------------------------------


def test_bytes_modes_times_links_and_empty_folders_come_over(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "empty").mkdir(mode=0o700)
    (source / "bin/run").write_bytes(b"#!/bin/sh\n")
    (source / "bin/run").chmod(0o751)
    (source / "large").write_bytes(os.urandom(3 * PART_BYTES + 7))
    (source / "nothing").touch()
    (source / "link").symlink_to("bin/run")
    os.utime(source / "large", ns=(1, 1_234_567_890_123_456_789))
    os.utime(source / "link", ns=(1, 987_654_321), follow_symlinks=False)
    os.utime(source / "bin", ns=(1, 5_000_000_001))
    done = copy(source, tmp_path / "target")
    target = tmp_path / "target"
    assert (done.files, done.folders, done.links, done.left_out) == (3, 3, 1, [])
    assert everything(target) == everything(source)
    for path in [source, *source.rglob("*")]:
        old, new = path.lstat(), (target / path.relative_to(source)).lstat()
        assert (old.st_mode, old.st_mtime_ns) == (new.st_mode, new.st_mtime_ns), path
    assert (target / "large").read_bytes() == (source / "large").read_bytes()
    assert (target / "link").readlink() == Path("bin/run")


def test_names_may_be_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    names = [b"new\nline", b"-rf", b"\xff\xfe", "ünï".encode(), b" ", b"a\\b", b"*", b"x" * 255]
    for name in names:
        (tmp_path / "source" / os.fsdecode(name)).write_bytes(name)
    copy(tmp_path / "source", tmp_path / "target")
    assert {os.fsencode(path.name) for path in (tmp_path / "target").iterdir()} == set(names)
    assert all((tmp_path / "target" / os.fsdecode(name)).read_bytes() == name for name in names)


def test_hard_links_of_one_tree_stay_one_file(tmp_path: Path) -> None:
    (tmp_path / "source/d").mkdir(parents=True)
    (tmp_path / "source/a").write_bytes(b"one")
    os.link(tmp_path / "source/a", tmp_path / "source/d/b")
    assert copy(tmp_path / "source", tmp_path / "target").bytes == 3
    assert (tmp_path / "target/a").stat().st_ino == (tmp_path / "target/d/b").stat().st_ino


def test_holes_stay_holes_and_cost_nothing(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(4 << 30)
        for offset in (0, 1 << 30, (4 << 30) - 5):
            file.seek(offset)
            file.write(b"here!")
    done = copy(tmp_path / "sparse", tmp_path / "copy")
    assert done.bytes < 1 << 20
    status = (tmp_path / "copy").stat()
    assert (status.st_size, status.st_blocks * 512 < 1 << 20) == (4 << 30, True)
    with (tmp_path / "copy").open("rb") as file:
        for offset in (0, 1 << 30, (4 << 30) - 5):
            file.seek(offset)
            assert file.read(5) == b"here!"


def test_suid_sgid_and_sticky_bits_stay_behind(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/su").touch()
    (tmp_path / "source/su").chmod(0o6755)
    (tmp_path / "source").chmod(0o1777)
    copy(tmp_path / "source", tmp_path / "target")
    assert stat.S_IMODE((tmp_path / "target/su").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o777


def test_a_tree_1500_folders_deep_comes_over_with_few_descriptors(deep_path: Path) -> None:
    fd = os.open(deep_path, os.O_RDONLY)
    for name in ["source", *["d" * 10] * 1500]:
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    most = 0

    def watched() -> Iterator[Part]:
        nonlocal most
        for part in parts_of(deep_path / "source"):
            most = max(most, descriptors())
            yield part

    gc.collect()  # what an earlier test dropped without closing is closed now, and not while this one counts
    before = descriptors()
    done = write(deep_path / "target", watched())
    assert (done.folders, done.files) == (1501, 1)
    assert most - before < 100
    assert descriptors() == before


def test_sockets_fifos_and_devices_are_left_out_and_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket"))
    done = copy(source, tmp_path / "target")
    assert {(left.path, left.why) for left in done.left_out} == {("fifo", "a FIFO"), ("socket", "a socket")}
    with pytest.raises(FileError, match="FIFO"):
        copy(source / "fifo", tmp_path / "target2")
    with pytest.raises(FileError, match="proc"):
        copy(Path("/proc/self"), tmp_path / "target2")


def test_a_file_that_grows_or_shrinks_while_it_is_read_is_copied_and_told(tmp_path: Path) -> None:
    for change in (10, 20 * PART_BYTES):
        (tmp_path / "file").write_bytes(b"x" * 8 * PART_BYTES)

        def changing(change: int = change) -> Iterator[Part]:
            for i, part in enumerate(parts_of(tmp_path / "file")):
                if i == 2:
                    os.truncate(tmp_path / "file", change)
                yield part

        done = write(tmp_path / "copy", changing())
        assert [changed.why for changed in done.changed] == ["it was written to while it was read"]
        assert (tmp_path / "copy").stat().st_size <= 8 * PART_BYTES
        assert set((tmp_path / "copy").read_bytes()) == {ord("x")}, "no zeros in place of what was cut"


def test_a_tree_that_is_changed_all_the_time_is_copied_without_an_error(tmp_path: Path) -> None:
    source, outside = tmp_path / "source", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    for i in range(50):
        (source / f"d{i}").mkdir(parents=True)
        (source / f"d{i}/f").write_text("inside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for i in range(50):
                (source / f"d{i}").rename(tmp_path / "aside")
                (source / f"d{i}").symlink_to(outside)
                (source / f"d{i}").unlink()
                (tmp_path / "aside").rename(source / f"d{i}")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for i in range(20):
            copy(source, tmp_path / f"target{i}", links="all")
    finally:
        stop.set()
        thread.join()
    assert not [
        path for path in tmp_path.glob("target*/**/*") if path.name == "secret" and not path.parent.is_symlink()
    ]


# ---- what is there already -----------------------------------------------------------------------------------------


def test_files_of_the_tree_replace_those_there_and_leave_the_others(tmp_path: Path) -> None:
    (tmp_path / "source/d").mkdir(parents=True)
    (tmp_path / "source/d/f").write_text("new")
    (tmp_path / "target/d").mkdir(parents=True)
    (tmp_path / "target/d").chmod(0o711)
    (tmp_path / "target/d/f").write_text("old and longer")
    (tmp_path / "target/d/other").write_text("kept")
    copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target/d/f").read_text() == "new"
    assert (tmp_path / "target/d/other").read_text() == "kept"
    assert stat.S_IMODE((tmp_path / "target/d").stat().st_mode) == 0o711


@pytest.mark.parametrize("size", [3, INLINE_BYTES + 1])
def test_a_link_or_hard_link_at_a_files_name_is_replaced_and_its_target_untouched(tmp_path: Path, size: int) -> None:
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    for name in ("soft", "hard"):
        (tmp_path / "source" / name).write_bytes(b"n" * size)
    (tmp_path / "target/soft").symlink_to(tmp_path / "victim")
    os.link(tmp_path / "victim", tmp_path / "target/hard")
    copy(tmp_path / "source", tmp_path / "target")
    copy(tmp_path / "source/soft", tmp_path / "target/hard")
    assert (tmp_path / "victim").read_text() == "untouched"
    assert (tmp_path / "target/soft").read_bytes() == (tmp_path / "target/hard").read_bytes() == b"n" * size
    assert not list(tmp_path.glob("target/.rockroll-*"))


def test_a_link_where_the_tree_has_a_folder_is_an_error_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "source/d").mkdir(parents=True)
    (tmp_path / "source/d/f").write_text("x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target/d").symlink_to(tmp_path / "outside")
    with pytest.raises(FileError, match="target/d cannot be made on this side: a link"):
        copy(tmp_path / "source", tmp_path / "target")
    assert not everything(tmp_path / "outside")


def test_the_target_itself_may_be_a_link_to_a_folder_since_the_caller_named_it(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/f").write_text("x")
    (tmp_path / "real").mkdir()
    (tmp_path / "target").symlink_to("real")
    copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "real/f").read_text() == "x"


def test_a_folder_or_device_in_the_place_of_a_file_is_an_error_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileError, match=r"folder on this side; to copy into it, write .*/folder/"):
        copy(tmp_path / "f", tmp_path / "folder")
    with pytest.raises(FileError, match="FIFO"):
        copy(tmp_path / "f", tmp_path / "fifo")


# ---- hostile streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b"/etc/x", b"../x", b"", b"a\0b"])
@pytest.mark.parametrize("item", [small, lambda name: Link(name, b"x", 0), Enter, lambda name: Same(name, 1)])
def test_a_name_that_is_none_ends_the_copy(tmp_path: Path, name: bytes, item: type) -> None:
    with pytest.raises(FileError, match="no tree of files"):
        write(tmp_path / "in/target", [[Enter(b""), small(b"first", number=1), item(name)]])
    assert everything(tmp_path) == {"in", "in/target", "in/target/first"}


def test_a_link_and_then_a_folder_or_file_of_its_name_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/f").write_text("untouched")
    out = Link(b"d", os.fsencode(tmp_path / "outside"), 0)
    with pytest.raises(FileError, match="a link"):
        write(tmp_path / "one", [[Enter(b""), out, Enter(b"d"), small(b"f")]], links="all")
    file = Link(b"g", os.fsencode(tmp_path / "outside/f"), 0)
    large = File(b"g", 0o644, 0, 5)
    for items in ([small(b"g", b"new")], [large, Extent(0, memoryview(b"large")), Whole(5)]):
        write(tmp_path / "two", [[Enter(b""), file, *items, Leave(0o755, 0)]], links="all")
        assert not (tmp_path / "two/g").is_symlink()
    with pytest.raises(FileError, match="no tree of files"):
        write(tmp_path / "three", [[Enter(b""), file, Same(b"h", 1), Leave(0o755, 0)]], links="all")
    assert (tmp_path / "outside/f").read_text() == "untouched"
    assert everything(tmp_path / "outside") == {"f"}


def test_names_that_come_twice_replace_one_another(tmp_path: Path) -> None:
    items = [small(b"f", b"1"), small(b"f", b"2"), Link(b"f", b"x", 0), small(b"f", b"3"), Same(b"f", 7)]
    numbered, folder = File(b"g", 0o644, 0, 1, 7, b"g"), [Enter(b"d"), Leave(0o755, 0)]
    write(tmp_path / "t", [[Enter(b""), numbered, *items, *folder, *folder, Leave(0o755, 0)]])
    assert (tmp_path / "t/f").read_bytes() == b"g"
    assert everything(tmp_path / "t") == {"f", "g", "d"}


@pytest.mark.parametrize(
    "part",
    [
        [Extent(0, memoryview(b"x"))],
        [Leave(0o755, 0)],
        [Whole(0)],
        [Link(b"", b"/etc", 0)],
        [Enter(b"x")],
        [small(b"x")],
        [Enter(b""), Leave(0o755, 0), Leave(0o755, 0)],
        [Enter(b""), Leave(0o755, 0), small(b"after")],
        [File(b"", 0o644, 0, 10), Extent(8, memoryview(b"beyond"))],
        [File(b"", 0o644, 0, 10), Extent(-1, memoryview(b"x"))],
        [File(b"", 0o644, 0, 10), Whole(11)],
        [File(b"", 0o644, 0, 10), small(b"")],
        [Enter(b""), File(b"a", 0o644, 0, 10), Enter(b"b")],
    ],
)
def test_a_stream_out_of_order_ends_the_copy_and_leaves_no_half_file(tmp_path: Path, part: Part) -> None:
    with pytest.raises(FileError, match="no tree of files"):
        write(tmp_path / "t", [part])
    assert not [name for name in everything(tmp_path) if ".rockroll-" in name]


def test_a_stream_that_ends_too_early_is_an_error_and_leaves_no_half_file(tmp_path: Path) -> None:
    for part in ([], [Enter(b"")], [File(b"", 0o644, 0, 10), Extent(0, memoryview(b"x"))]):
        with pytest.raises(FileError, match="before the tree was whole"):
            write(tmp_path / f"t{len(part)}", [part])  # type: ignore[list-item]
    assert everything(tmp_path) == {"t1"}


def test_links_that_lead_out_of_the_tree_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    inside = [b"f", b"d/f", b"nowhere"]
    outside = [b"/etc/passwd", b"..", b"../x", b"d/../../x", b"d/..", b""]
    links = [Link(b"l%d" % i, target, 0) for i, target in enumerate(inside + outside) if target]
    deep = [Enter(b"d"), Link(b"up", b"../f", 0), Link(b"out", b"../../f", 0), Leave(0o755, 0)]
    tree: list[Part] = [[Enter(b""), *links, *deep, Leave(0o755, 0)]]
    done = write(tmp_path / "t", tree, links="inside")
    made = {str(path.readlink()) for path in (tmp_path / "t").rglob("*") if path.is_symlink()}
    assert made == {"f", "d/f", "nowhere", "../f"}
    assert (done.left_out_count, len(done.left_out)) == (6, 6)
    assert "leads out of the tree, to /etc/passwd" in done.left_out[0].why
    assert write(tmp_path / "u", tree, links="all").left_out == []


def test_a_full_file_system_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be written"):
        write(tmp_path / "t", [[File(b"", 0o644, 0, 1 << 62), Whole(1 << 62)]])
    assert everything(tmp_path) == set()
