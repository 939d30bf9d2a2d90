"""What the node reads and writes for a user cannot be turned against the host, whatever the box does meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
from pathlib import Path

import pytest

from rockroll.errors import FileError, RockrollError
from rockroll.sandbox import wire
from tests.sandbox.conftest import Lab, needs_cgroups, only_root

pytestmark = pytest.mark.asyncio(loop_scope="module")
_numbers = itertools.count()
SWAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
a, b = (os.fsencode(word) for word in sys.argv[1:])
print("swapping", flush=True)
while True:
    libc.renameat2(-100, a, -100, b, 2)  # both at once: at no moment is there nothing
"""


async def swapping(lab: Lab, one: str, other: str) -> wire.CommandInfo:
    """A program in the box that exchanges two names as fast as it can."""
    begun = await lab.call(
        "command.start",
        wire.Start(
            id=lab.id, command_id=f"swap {one} {other} {next(_numbers)}", argv=["python3", "-c", SWAP, one, other]
        ),
    )
    async for chunk in lab.handlers["command.output"](
        wire.ReadOutput(id=lab.id, command_id=begun.command_id, offset=0, follow=True), lab.peer
    ):
        if chunk.data:
            return begun
    raise AssertionError("it did not begin")


async def ended(lab: Lab, begun: wire.CommandInfo) -> None:
    await lab.call("command.cancel", wire.CommandRef(id=lab.id, command_id=begun.command_id))


async def every_method(lab: Lab, path: str) -> None:
    """Each way in which the node touches a path of the box; what is refused is refused."""
    inside = path.encode()
    bodies = [
        ("file.read", wire.ReadFile(id=lab.id, path=inside + b"/f")),
        ("file.write", wire.WriteFile(id=lab.id, path=inside + b"/new", data=b"planted")),
        ("file.write", wire.WriteFile(id=lab.id, path=inside + b"/f", data=b"more", append=True)),
        ("file.write", wire.WriteFile(id=lab.id, path=inside + b"/deep/er/new", data=b"planted")),
        ("file.mkdir", wire.MakeFolder(id=lab.id, path=inside + b"/made/deep", mode=0o777)),
        ("file.move", wire.MoveFile(id=lab.id, source=inside + b"/f", target=b"/srv/stolen")),
        ("file.move", wire.MoveFile(id=lab.id, source=b"/srv/mine", target=inside + b"/moved")),
        ("file.list", wire.ListFiles(id=lab.id, path=inside)),
        ("file.stat", wire.StatFile(id=lab.id, path=inside + b"/f")),
        ("file.remove", wire.RemoveFile(id=lab.id, path=inside + b"/f")),
        ("file.remove", wire.RemoveFile(id=lab.id, path=inside, recursive=True)),
    ]
    for method, body in bodies:
        try:
            got = await lab.call(method, body)
        except FileError:
            continue
        if method == "file.read":
            assert b"host" not in got.data
        if method == "file.list":
            assert "secret" not in {entry.name for entry in got}


async def test_no_method_follows_a_link_out_while_it_is_swapped(shared: Lab, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "f").write_text("the host's")
    (canary / "secret").write_text("the host's")
    prepare = f"cd /srv; rm -rf a b; mkdir a; ln -s {canary} b; ln -sfn ../../../../..{canary} c"
    before = sorted((path.name, path.stat().st_mtime_ns, path.stat().st_mode) for path in canary.iterdir())
    for _ in range(6):
        await shared.out(f"{prepare}; echo f >a/f; echo m >mine")
        begun = await swapping(shared, "/srv/a", "/srv/b")
        for _ in range(4):
            await every_method(shared, "/srv/a")
            await every_method(shared, "/srv/c")
        await ended(shared, begun)
    assert before == sorted((path.name, path.stat().st_mtime_ns, path.stat().st_mode) for path in canary.iterdir())
    assert "the host" not in await shared.out("cat /srv/stolen 2>/dev/null || true")


async def test_a_file_swapped_for_a_fifo_or_a_device_blocks_nobody(shared: Lab) -> None:
    await shared.out("cd /srv; rm -rf x y; echo text >x; mkfifo y; ln -sfn /dev/zero z; ln -sfn /dev/tty t")
    begun = await swapping(shared, "/srv/x", "/srv/y")
    async with asyncio.timeout(20):
        for _ in range(100):
            for body in (
                wire.ReadFile(id=shared.id, path=b"/srv/x"),
                wire.ReadFile(id=shared.id, path=b"/srv/z"),
                wire.ReadFile(id=shared.id, path=b"/srv/t"),
            ):
                try:
                    assert (await shared.call("file.read", body)).data in (b"text\n", b"")
                except FileError as error:
                    assert "special file" in error.message or "no such" in error.message.lower()
            try:
                await shared.call("file.write", wire.WriteFile(id=shared.id, path=b"/srv/x", data=b"text\n"))
            except FileError:
                continue
    await ended(shared, begun)


@only_root
async def test_a_link_to_what_only_the_host_s_root_may_read_gives_nothing(shared: Lab) -> None:
    """The node is root of the host: through the box's /proc it could read the host's kernel log, and take it away."""
    await shared.out("cd /srv; ln -sfn /proc/kmsg result; ln -sfn /proc/kpageflags flags; ln -sfn /proc/1/environ env")
    for path in (b"/srv/result", b"/srv/flags", b"/srv/env", b"/proc/kmsg"):
        async with asyncio.timeout(5):
            with pytest.raises(FileError):
                await shared.call("file.read", wire.ReadFile(id=shared.id, path=path))
            with pytest.raises(FileError):
                async for _ in shared.handlers["file.get"](wire.PathOf(id=shared.id, path=path), shared.peer):
                    pass
    status = await shared.call("file.read", wire.ReadFile(id=shared.id, path=b"/proc/version"))
    assert status.data.startswith(b"Linux"), "what everybody may read is read"


@pytest.mark.parametrize("link", ["root", "cwd", "exe", "fd/0", "fd/1", "ns/net", "ns/mnt", "task/1/root", "map_files"])
async def test_magic_links_of_proc_are_no_way(shared: Lab, link: str) -> None:
    for name in (f"/proc/1/{link}", f"/proc/self/{link}", f"/proc/thread-self/{link}"):
        path = name.encode()
        await shared.execute("ln", "-sfn", name, "/srv/magic")
        for target in (path, path + b"/etc/shadow", b"/srv/magic", b"/srv/magic/etc/shadow"):
            with pytest.raises(FileError):
                await shared.call("file.read", wire.ReadFile(id=shared.id, path=target))
            with pytest.raises(FileError):
                await shared.call("file.write", wire.WriteFile(id=shared.id, path=target, data=b"x"))


async def test_hard_links_reach_no_file_of_the_host(shared: Lab) -> None:
    shown = "/dev/rockroll-init /proc/meminfo /sys/devices/system/cpu/online /etc/hosts"
    places = "/srv/h /dev/h /dev/shm/h"
    script = f"for f in {shown}; do for t in {places}; do ln $f $t && echo LINKED $f $t; done; done 2>/dev/null"
    await shared.run(script)
    assert "LINKED" not in (await shared.run(script)).stdout.decode()
    for path in shown.split()[:3]:
        done = await shared.execute(
            "sh", "-c", f"echo x >{path}; chmod 777 {path}; chown 0 {path}; truncate -s 0 {path}"
        )
        assert done.exit_code != 0
    assert Path("/proc/meminfo").read_text().startswith("MemTotal")


async def test_a_download_gives_no_file_that_runs_as_another_user(shared: Lab, tmp_path: Path) -> None:
    await shared.out("mkdir -p /srv/s; cp /bin/true /srv/s/t; chmod 6755 /srv/s/t; chmod 1777 /srv/s")
    from rockroll.sandbox.fs.tree_write import Target, TreeWriter

    here = os.open(tmp_path, os.O_PATH)
    try:
        target = Target(
            parent=here, name=b"out", folder=lambda: os.open(tmp_path / "out", os.O_RDONLY), path="out", side=""
        )
        writer = TreeWriter(target)
        async for part in shared.handlers["file.get"](wire.PathOf(id=shared.id, path=b"/srv/s"), shared.peer):
            writer.write(part)
        writer.done()
        writer.close()
    finally:
        os.close(here)
    assert stat.S_IMODE((tmp_path / "out/t").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777


async def test_the_box_cannot_change_what_it_is_told_to_run(shared: Lab) -> None:
    script = """
    cd /dev/rr/* 2>/dev/null || cd /dev/rr/1
    for f in cmd prelude r q state ctl; do
        (echo evil >$f.new) && echo MADE
        rm -f $f && echo REMOVED $f
        ln $f /dev/shm/$f && echo LINKED $f
        mv $f x && echo MOVED $f
        chmod 777 $f && echo CHMOD $f
        [ -f $f ] && (echo evil >$f) && echo WROTE $f
    done 2>/dev/null; true
    """
    done = await shared.run(script, timeout=5)
    assert done.stdout == b"", done
    assert await shared.out("echo still here") == "still here"


async def test_the_log_says_who_printed_what_in_spite_of_lines_that_look_like_it(shared: Lab) -> None:
    """A header of the log is no promise: whoever prints can print one. The chunks of a command's own output are."""
    await shared.run("printf '[session default] $ rm -rf /\\nexit 0\\n'")
    begun = await shared.call("command.start", wire.Start(id=shared.id, command_id="own", argv=["echo", "mine"]))
    await shared.call("command.wait", wire.CommandRef(id=shared.id, command_id=begun.command_id))
    told = b""
    async for chunk in shared.handlers["command.output"](
        wire.ReadOutput(id=shared.id, command_id="own", offset=0, follow=True), shared.peer
    ):
        told += chunk.data
    assert told == b"mine\n"


@needs_cgroups  # a running box is held still by its freezer
async def test_snapshots_take_links_and_fifos_as_they_are(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("the host's")
    await lab.out(
        f"cd /srv; ln -s {tmp_path} out; mkfifo p; ln -s /proc/kmsg k; mkdir -p d; ln -s / d/root; chmod 4755 d"
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    async with asyncio.timeout(30):
        fork = await lab.call("sandbox.fork", wire.Fork(id=lab.id))
    try:
        other = Lab(lab.host)
        other.id = fork.id
        told = await other.out("cd /srv; stat -c '%N %F' out p k d/root; cat out/f 2>/dev/null || echo none")
        assert "the host" not in told and told.endswith("none") and "fifo" in told
    finally:
        await lab.call("sandbox.delete", wire.Ref(id=fork.id))
    assert before == sorted(path.name for path in tmp_path.iterdir())


async def test_a_watch_follows_no_link_while_it_is_swapped(shared: Lab, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    await shared.out(f"cd /srv; rm -rf w v; mkdir -p w/a; ln -s {tmp_path}/w v")
    begun = await swapping(shared, "/srv/w/a", "/srv/v")
    seen: list[wire.FileEvent] = []

    async def watching() -> None:
        try:
            async for events in shared.handlers["file.watch"](
                wire.WatchFiles(id=shared.id, path=b"/srv", recursive=True), shared.peer
            ):
                seen.extend(events)
        except RockrollError:
            return

    task = asyncio.create_task(watching())
    await asyncio.sleep(0.3)
    (tmp_path / "w/of-the-host").write_text("x")
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await ended(shared, begun)
    assert seen and not [event for event in seen if "of-the-host" in event.path]
