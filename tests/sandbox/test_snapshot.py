"""What snapshots and forks promise: the files as they were, nothing of what comes later, and no half of anything."""

from __future__ import annotations

import asyncio
import os
import signal
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from rockroll import Sandbox, SandboxConfig, home
from rockroll.errors import (
    HostError,
    ImageMissing,
    SandboxError,
    SandboxLost,
    SandboxNotFound,
    SnapshotNotFound,
    UsageError,
)
from rockroll.sandbox import wire
from rockroll.sandbox.client import delete_snapshot, snapshots
from rockroll.sandbox.container import freezer, layer, runtime
from rockroll.sandbox.node.host import SandboxHost
from rockroll.sandbox.node_client import close_node, connect_node
from rockroll.sandbox.wire import Fork, Ref, Snapshot, SnapshotRef
from tests.sandbox.conftest import Lab, left_mounted, needs_cgroups

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_cgroups]
needs_root = pytest.mark.skipif(runtime.is_rootless(), reason="disk limits need root")

MAKE = r"""
mkdir -p /srv/deep/er; cd /srv
echo one >plain; ln plain hard; ln -s plain soft; ln -s /nowhere/at/all dangling
truncate -s 50m sparse; echo end >>sparse
printf x >suid; chmod 4755 suid; printf x >sgid; chown 1000:50 sgid; chmod 2711 sgid
touch -d '2001-02-03 04:05:06.789' old; mkdir -m 1777 sticky; mkfifo -m 600 fifo; chown 33:33 deep; chmod 000 deep/er
touch -- $'new\nline' '-rf *' $'\xff\xfe'
python3 -c 'import os; os.setxattr("plain", "user.note", b"kept"); os.setxattr("deep", "user.note", b"folder")'
rm /etc/issue; rm -r /etc/apt; mkdir /etc/apt; echo mine >/etc/apt/only; echo "# more" >>/etc/passwd; rm -r /opt
"""
SEE = r"""
cd /; find srv etc opt -printf '%p %y %m %U %G %s %b %n %l %T@\n' 2>&1 | grep -v -e '^etc/ho' -e resolv.conf | sort
cd /srv; cat plain etc/apt/only 2>/dev/null; tail -c 4 sparse; [ plain -ef hard ] && echo same; md5sum /etc/passwd
python3 -c 'import os; print(os.getxattr("plain", "user.note"), os.getxattr("deep", "user.note"))'
ls -A /etc/apt /etc/issue /opt
"""


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def no_snapshot_stays(host: SandboxHost) -> AsyncIterator[None]:
    yield
    for info in host._snapshots.all():
        await host._snapshots.delete(info.name)
    assert list((home.node_dir() / "snapshots").iterdir()) == []


async def snapshot(lab: Lab, name: str) -> wire.SnapshotInfo:
    return await lab.call("sandbox.snapshot", Snapshot(id=lab.id, name=name))


async def fork(lab: Lab, name: str | None = None) -> Lab:
    other = Lab(lab.host)
    other.peer = lab.peer
    other.id = (await lab.call("sandbox.fork", Fork(id=lab.id, name=name))).id
    return other


async def delete(*labs: Lab) -> None:
    for lab in labs:
        await lab.call("sandbox.delete", Ref(id=lab.id))


async def see(lab: Lab) -> list[str]:
    return (await lab.execute("bash", "-c", SEE)).output.splitlines()


# ---- what is kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disk", [None, pytest.param("64m", marks=needs_root)])
async def test_a_snapshot_and_a_fork_keep_every_kind_of_file(host: SandboxHost, disk: str | None) -> None:
    origin = await Lab(host, disk=disk).up()
    assert (await origin.run(MAKE)).stderr == b""
    seen = await see(origin)
    info = await snapshot(origin, "kinds")
    assert (info.image, info.sandbox) == ("localhost/rockroll-base:1", origin.id) and info.size_bytes < 2 << 20
    forked = await fork(origin)
    started = await Lab(host, snapshot="kinds").up()
    again = await fork(forked)
    for each in (forked, started, again):
        assert await see(each) == seen
    assert any("suid f 4755 0 0" in line for line in seen) and any("sgid f 2711 1000 50" in line for line in seen)
    assert "same" in seen and "b'kept' b'folder'" in seen and "only" in seen
    assert (forked.box.config.disk, started.box.config.disk) == (disk, None)
    await delete(origin, forked, started, again)


async def test_root_of_another_user_keeps_what_setuid_gives(lab: Lab) -> None:
    """A program that its owner has made setuid runs as nobody else in a fork: the bit and the owner are both there."""
    await lab.run("cp /usr/bin/id /srv/id; chown 1000 /srv/id; chmod 4755 /srv/id")
    other = await fork(lab)
    mode = "stat -c '%a %u' /srv/id"
    assert await other.out(mode) == await lab.out(mode) == "4755 1000"
    await delete(other)


async def test_neither_sees_what_the_other_writes_later(lab: Lab) -> None:
    await lab.run("echo before >/srv/file; ln /srv/file /srv/link; x=1; sleep 300 & disown")
    await snapshot(lab, "then")
    other = await fork(lab)
    assert await other.out("echo [$x]; pgrep -c sleep || true") == "[]\n0"
    await lab.run("echo origin >/srv/file; rm /srv/link")
    await other.run("echo fork >>/srv/link; touch /srv/more")
    assert await lab.out("cat /srv/*") == "origin"
    assert await other.out("cat /srv/file; ls /srv") == "before\nfork\nfile\nlink\nmore"
    third = await Lab(lab.host, snapshot="then").up()
    assert await third.out("cat /srv/file; ls /srv") == "before\nfile\nlink"
    assert lab.named("300"), "what ran in the origin runs on"
    await delete(other, third)


@pytest.mark.slow
async def test_folders_may_be_as_deep_as_a_path_can_name(lab: Lab) -> None:
    dig = 'python3 -c \'import os\nfor _ in range({}): os.mkdir("d"); os.chdir("d")\nopen("end", "w")\''
    await lab.run(f"cd /srv; {dig.format(1500)}")
    assert (await snapshot(lab, "deep")).size_bytes < 1 << 20
    other = await fork(lab)
    assert await other.out("find /srv -name end | wc -c") == str(len("/srv" + "/d" * 1500 + "/end\n"))
    await delete(other)
    await lab.run(f"cd /srv; {dig.format(3000)}".replace('"d"', '"e"'))
    with pytest.raises(SandboxError, match=r"could not be copied: .*File name too long"):
        await snapshot(lab, "deeper")
    assert (await lab.call("sandbox.stats", Ref(id=lab.id))).disk_bytes >= 0
    await lab.call("snapshot.delete", wire.SnapshotRef(name="deep"))


async def test_a_busy_box_is_held_still_and_goes_on(lab: Lab) -> None:
    """Two files that are always written one after the other are never seen the wrong way round."""
    write = "for i in $(seq 100000); do echo $i >>/srv/a; echo $i >>/srv/b; done"
    busy = asyncio.create_task(lab.run(write, 60))
    while (await lab.execute("test", "-s", "/srv/b")).exit_code != 0:
        await asyncio.sleep(0.01)
    for _ in range(3):
        other = await fork(lab)
        first, second = (await other.out("wc -l </srv/a; wc -l </srv/b")).split()
        assert int(first) - int(second) in (0, 1)
        await delete(other)
    before = await lab.out("wc -l </srv/b", session="other")
    await asyncio.sleep(0.05)
    assert int(await lab.out("wc -l </srv/b", session="other")) > int(before)
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)


async def test_a_stopped_box_can_be_copied(lab: Lab) -> None:
    await lab.run("echo kept >/srv/file")
    await lab.call("sandbox.stop", Ref(id=lab.id))
    other = await fork(lab)
    assert await other.out("cat /srv/file") == "kept"
    await delete(other)


async def test_a_volume_of_the_image_is_part_of_the_files(host: SandboxHost, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        tar.add(tmp_path / "data", "data")
        tar.add(tmp_path / "data", "usr")
    name = f"localhost/rockroll-test-volume-{os.getpid()}:1"
    await host._podman.image_import(tmp_path / "image.tar", name, ["VOLUME /data"])
    try:
        origin = await Lab(host, image=name).up()
        await origin.call("file.write", wire.WriteFile(id=origin.id, path=b"/data/x", data=b"kept"))
        other = await fork(origin)
        assert (await other.call("file.read", wire.ReadFile(id=other.id, path=b"/data/x"))).data == b"kept"
        info = await snapshot(origin, "volume")
        await delete(origin, other)
    finally:
        await host._podman.image_remove(name)
    with pytest.raises(ImageMissing, match=f"'volume' stands on {name} .{info.image_id[:12]}.* no longer"):
        await Lab(host, snapshot="volume").up()


async def test_a_box_from_a_snapshot_is_recycled_to_the_snapshot(lab: Lab) -> None:
    await lab.run(MAKE)
    await snapshot(lab, "base")
    box = await Lab(lab.host, snapshot="base").up()
    seen = await see(box)
    for _ in range(2):
        await box.run("echo more >/srv/more; mkdir -p /srv/deep/x /new; echo x >/etc/apt/second")
        assert await box.recycle() == wire.Recycled(ok=True)
        assert [line for line in await see(box) if " d " not in line] == [line for line in seen if " d " not in line]
    await box.run("echo ONE >/tmp/x; touch -r /srv/plain /tmp/x; cat /tmp/x >/srv/plain; touch -r /tmp/x /srv/plain")
    recycled = await box.recycle()
    assert not recycled.ok and "/srv/" in recycled.reason and "was changed" in recycled.reason


# ---- forks ---------------------------------------------------------------------------------------------------------


@needs_root
async def test_a_fork_of_a_limited_box_has_the_limit_and_leaves_nothing(host: SandboxHost) -> None:
    origin = await Lab(host, disk="32m").up()
    await origin.run("head -c 20m /dev/urandom >/srv/file")
    other = await fork(origin)
    for each in (origin, other):
        assert b"No space left" in (await each.run("head -c 20m /dev/zero >/srv/more")).stderr
        stats = await each.call("sandbox.stats", Ref(id=each.id))
        assert 0.9 * (32 << 20) < stats.disk_bytes <= stats.disk_limit <= 32 << 20
    assert await other.out("md5sum </srv/file") == await origin.out("md5sum </srv/file")
    await snapshot(origin, "full")
    with pytest.raises(UsageError, match="disk: 16m has no room for the files"):
        await Lab(host, snapshot="full", disk="16m").up()
    await delete(origin, other)
    assert not left_mounted(origin.id) and not left_mounted(other.id)


async def test_eight_forks_at_once(lab: Lab) -> None:
    await lab.run("echo x >/srv/file")
    forks = await asyncio.gather(*(fork(lab, f"fork-{i}") for i in range(8)))
    assert len({each.id for each in forks}) == 8
    seen = await asyncio.gather(*(each.out(f"echo {i} >>/srv/file; cat /srv/file") for i, each in enumerate(forks)))
    assert seen == [f"x\n{i}" for i in range(8)]
    assert await lab.out("cat /srv/file") == "x"
    await asyncio.gather(*(delete(each) for each in forks))


async def test_a_fork_belongs_to_whom_its_origin_belongs(host: SandboxHost) -> None:
    origin = await Lab(host, labels={"job": "x"}, env={"A": "b"}).up()
    other = await fork(origin, "named")
    info = other.box.info()
    assert (info.owner, info.name, info.labels, info.env["A"]) == ("connection", "named", {"job": "x"}, "b")
    kept = await origin.call("sandbox.fork", Fork(id=origin.id, owner="detached"))
    with pytest.raises(UsageError, match="'named' exists"):
        await fork(origin, "named")
    await host.on_disconnect(origin.peer)
    assert [each.id for each in await origin.call("sandbox.list", wire.List())] == [kept.id]
    await origin.call("sandbox.delete", Ref(id=kept.id))


async def test_a_fork_that_is_cancelled_leaves_nothing_and_its_origin_running(lab: Lab) -> None:
    await lab.run("head -c 30m /dev/urandom >/srv/file")
    before = lab.host.count()
    for delay in (0.0, 0.02, 0.05, 0.08, 0.15):
        forking = asyncio.create_task(fork(lab))
        await asyncio.sleep(delay)
        forking.cancel()
        (made,) = await asyncio.gather(forking, return_exceptions=True)
        if isinstance(made, Lab):  # it was quicker
            await delete(made)
        assert await lab.out("echo on") == "on"
    assert lab.host.count() == before


# ---- names and wrong uses ------------------------------------------------------------------------------------------


async def test_wrong_names_say_what_to_do(lab: Lab) -> None:
    await snapshot(lab, "here")
    with pytest.raises(UsageError, match=r"'here' exists; take another name, or remove it .*--rm here"):
        await snapshot(lab, "here")
    for name in ("", ".hidden", "a/b", "..", "x" * 64):
        with pytest.raises(UsageError, match="a snapshot's name: at most 63"):
            await snapshot(lab, name)
    with pytest.raises(SnapshotNotFound, match="no snapshot 'there'; there are: here"):
        await Lab(lab.host, snapshot="there").up()
    with pytest.raises(SnapshotNotFound, match="'there'"):
        await lab.call("snapshot.delete", SnapshotRef(name="there"))
    assert [info.name for info in await lab.call("snapshot.list", wire.Empty())] == ["here"]
    assert (await lab.call("snapshot.delete", SnapshotRef(name="here"))).name == "here"
    assert await lab.call("snapshot.list", wire.Empty()) == []


async def test_two_snapshots_of_one_name_at_once_are_one(lab: Lab) -> None:
    both = await asyncio.gather(snapshot(lab, "one"), snapshot(lab, "one"), return_exceptions=True)
    assert sorted(type(each).__name__ for each in both) == ["SnapshotInfo", "UsageError"]


async def test_files_of_a_box_with_other_ids_on_disk_are_refused(host: SandboxHost, lab: Lab, tmp_path: Path) -> None:
    if runtime.is_rootless() or not runtime.detect().user_namespaces:
        pytest.skip("all boxes here have the same ids")
    await snapshot(lab, "mapped")
    with pytest.raises(UsageError, match="taken with a user namespace"):
        await Lab(host, snapshot="mapped", mounts=[f"{tmp_path}:/mnt"]).up()
    plain = await Lab(host, mounts=[f"{tmp_path}:/mnt"]).up()
    await plain.run("echo kept >/srv/file")
    other = await fork(plain)
    assert await other.out("cat /srv/file; stat -c %u /srv/file") == "kept\n0"
    await snapshot(plain, "plain")
    with pytest.raises(UsageError, match="taken without a user namespace"):
        await Lab(host, snapshot="plain").up()
    await delete(plain, other)


async def test_what_a_killed_fork_to_another_node_left_is_gone_after_a_while(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await snapshot(lab, "moved-1")
    await snapshot(lab, "mine")
    await snapshot(lab, "moved-2")
    assert [info.name for info in lab.host._snapshots.all()] == ["moved-1", "mine", "moved-2"]
    monkeypatch.setattr("rockroll.sandbox.boxes.snapshot.MOVED_S", 0.0)
    async with lab.host._snapshots.files("moved-2"):  # a box is being started from it
        await snapshot(lab, "moved-3")
    assert [info.name for info in lab.host._snapshots.all()] == ["mine", "moved-2", "moved-3"]


async def test_a_host_without_a_freezer_says_to_stop_first(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezer, "_switch", lambda _: None)
    with pytest.raises(HostError, match=r"no freezer .*stop it first"):
        await snapshot(lab, "running")
    await lab.call("sandbox.stop", Ref(id=lab.id))
    await snapshot(lab, "stopped")


async def test_a_process_that_cannot_be_frozen_is_waited_for_only_so_long(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezer, "WITHIN_S", 0.05)
    monkeypatch.setattr(freezer, "_is_frozen", lambda _: False)
    with pytest.raises(SandboxError, match=r"did not stop within 0.05 s"):
        await fork(lab)
    assert await lab.out("echo on") == "on"


async def test_what_the_node_writes_waits_while_files_are_copied(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.run("mkdir /srv/a; echo x >/srv/a/f; echo 1 >/srv/order")
    calls: list[asyncio.Task[None]] = []
    copy = layer.copy

    async def copy_slowly(source: Path, target: Path) -> None:
        write = wire.WriteFile(id=lab.id, path=b"/srv/order", data=b"2")
        calls.append(asyncio.create_task(lab.call("file.write", write)))
        calls.append(
            asyncio.create_task(lab.call("file.move", wire.MoveFile(id=lab.id, source=b"/srv/a", target=b"/b")))
        )
        assert not (await asyncio.wait(calls, timeout=0.2))[0]
        await copy(source, target)

    monkeypatch.setattr(layer, "copy", copy_slowly)
    await snapshot(lab, "still")
    await asyncio.gather(*calls)
    assert await lab.out("cat /srv/order /b/f") == "2x"
    kept = lab.host._snapshots._folder / "still" / "files"
    assert (kept / "srv/order").read_text() == "1\n" and (kept / "srv/a/f").exists() and not (kept / "b").exists()


# ---- a node that is killed -----------------------------------------------------------------------------------------


async def test_after_kill_9_under_way_no_half_is_left_and_the_origin_goes_on(
    node_home: Path, end_process: Callable[..., None]
) -> None:
    origin = Sandbox(SandboxConfig(memory="512m"), owner="detached")
    await origin.start()
    await origin.execute(["sh", "-c", "head -c 300m /dev/zero >/srv/file"])
    node = await connect_node()
    pid = (await node.call("node.info", wire.Empty(), type=wire.NodeInfo)).pid
    folder = node_home / "node" / "snapshots"
    work = [asyncio.create_task(origin.snapshot("half")), asyncio.create_task(origin.fork(name="half"))]
    while not list(folder.glob(".new-half-*/files/srv")):
        await asyncio.sleep(0.001)
    end_process(pid, signal.SIGKILL)
    assert all(isinstance(each, SandboxLost) for each in await asyncio.gather(*work, return_exceptions=True))
    again = await Sandbox.attach(origin.id)
    assert (await again.execute(["stat", "-c", "%s", "/srv/file"], timeout=20)).stdout == b"314572800\n"
    assert list(folder.iterdir()) == [] and await snapshots() == []
    with pytest.raises(SandboxNotFound):
        await Sandbox.attach("half")
    await again.snapshot("whole")
    assert [info.name for info in await snapshots()] == ["whole"]
    await delete_snapshot("whole")
    await again.delete()
    await close_node()
