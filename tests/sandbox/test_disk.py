"""What a disk limit promises: it holds, it hurts nobody else, the box bears it, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from rockroll import Sandbox, SandboxConfig
from rockroll.errors import HostError, ImageMissing, LimitNotEnforced, SandboxNotFound
from rockroll.sandbox import wire
from rockroll.sandbox.container import disk, runtime
from rockroll.sandbox.node import node_config
from rockroll.sandbox.node.host import SandboxHost
from rockroll.sandbox.node_client import close_node, connect_node
from rockroll.sandbox.wire import NodeInfo, Ref, Stats
from tests.sandbox.conftest import Lab, left_mounted

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(runtime.is_rootless(), reason="a disk limit needs root: test_rootless.py has the other half"),
]
MB = 1 << 20


@pytest_asyncio.fixture(loop_scope="module")
async def small(host: SandboxHost) -> AsyncIterator[Lab]:
    """A box with 32 MB of disk."""
    lab = await Lab(host, disk="32m").up()
    yield lab
    if lab.id in host._boxes:
        await lab.call("sandbox.delete", Ref(id=lab.id))
    assert not left_mounted(lab.id)


async def stats(lab: Lab) -> Stats:
    return await lab.call("sandbox.stats", Ref(id=lab.id))


# ---- the limit -----------------------------------------------------------------------------------------------------


async def test_the_limit_is_exact_and_an_ordinary_error(small: Lab, host: SandboxHost) -> None:
    other = await Lab(host, disk="32m").up()
    done = await small.run("head -c 100m /dev/zero >/srv/big")
    assert (done.outcome, done.exit_code) == ("ok", 1) and b"No space left on device" in done.stderr
    written = int(await small.out("stat -c %s /srv/big"))
    assert 0.93 * 32 * MB < written <= 32 * MB
    seen = await stats(small)
    assert 0.96 * 32 * MB < seen.disk_limit <= 32 * MB and written <= seen.disk_bytes <= seen.disk_limit
    assert await small.out("rm /srv/big; echo usable >/srv/x; cat /srv/x") == "usable"
    assert (await stats(small)).disk_bytes < 2 * MB
    assert await other.out("head -c 16m /dev/zero >/srv/mine; stat -c %s /srv/mine") == str(16 * MB)
    await other.call("sandbox.delete", Ref(id=other.id))
    assert not left_mounted(other.id)


async def test_everything_that_root_can_write_counts(small: Lab) -> None:
    """Any folder, as any user, files that Podman binds in as well; and there is no second way to the host's disk."""
    for path in ("/etc/hosts", "/etc/hostname", "/run/.containerenv", "/tmp/x", "/var/tmp/y", "/opt/z"):
        done = await small.run(f"cp {path} /tmp/kept 2>/dev/null; head -c 40m /dev/zero >>{path}")
        assert b"No space left on device" in done.stderr, (path, done)
        assert (await small.run(f"head -c 0 /dev/null >{path}")).exit_code == 0
    mounts = Path(f"/proc/{small.box.init}/mountinfo").read_text()
    root = os.stat("/").st_dev
    writable = [line for line in mounts.splitlines() if f" {os.major(root)}:{os.minor(root)} " in line]
    assert all(" ro," in line.partition(" - ")[0] for line in writable), writable


async def test_sparse_files_cost_what_they_hold_and_many_files_are_possible(small: Lab) -> None:
    assert await small.out("truncate -s 10g /srv/sparse; echo end >>/srv/sparse; stat -c %s /srv/sparse") == str(
        10 * (1 << 30) + 4
    )
    assert (await stats(small)).disk_bytes < 2 * MB
    made = 'python3 -c \'import os\nfor i in range(9999): open(f"/srv/{i}", "w")\'; ls /srv | wc -l'
    done = await small.run(made)
    assert 3000 < int(done.stdout) < 5000 and b"No space left" in done.stderr  # one for each 8 KiB: 4,096
    assert (await small.run("rm -r /srv/[0-9]*; echo x >/srv/y")).exit_code == 0


async def test_shared_memory_counts_as_memory_not_as_disk(small: Lab) -> None:
    assert await small.out("head -c 40m /dev/zero >/dev/shm/x; stat -c %s /dev/shm/x; rm /dev/shm/x") == str(40 * MB)


async def test_without_a_limit_there_is_none(shared: Lab) -> None:
    assert (await stats(shared)).disk_limit == 0
    assert not disk.Disk(shared.id).exists()


async def test_a_host_that_cannot_limit_says_so(host: SandboxHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise disk.NoDisk("no loop device is free")

    monkeypatch.setattr(disk.Disk, "_mount", cannot)
    with pytest.raises(LimitNotEnforced, match="disk: no loop device is free; set allow_unenforced"):
        await Lab(host, disk="32m").up()
    asked = await Lab(host, disk="32m", allow_unenforced=True).up()
    assert (await stats(asked)).disk_limit == 0
    node_config.path().write_text("limits: {allow_unenforced: true}\n")
    granted = await Lab(host, disk="32m").up()
    node_config.path().unlink()
    for lab in (asked, granted):
        assert lab.box.info().unenforced == ["disk"]
        await lab.call("sandbox.delete", Ref(id=lab.id))
    assert list(disk.disks_dir().iterdir()) == []


# ---- life ----------------------------------------------------------------------------------------------------------


async def test_a_disk_that_is_unmounted_between_its_mount_and_the_start_is_there_all_the_same(
    host: SandboxHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `podman info` does it, of any user of this storage, while none of its containers is mounted."""
    attach, lost = disk.Disk.attach, []

    def attach_and_lose(self: disk.Disk, layer: Path) -> None:
        attach(self, layer)
        if not lost:
            lost.append(layer)
            subprocess.run(["umount", "-l", str(layer)], check=True)

    monkeypatch.setattr(disk.Disk, "attach", attach_and_lose)
    lab = await Lab(host, disk="32m").up()
    assert lost and 0.96 * 32 * MB < (await stats(lab)).disk_limit <= 32 * MB
    done = await lab.run("head -c 100m /dev/zero >/srv/big")
    assert done.exit_code == 1 and b"No space left on device" in done.stderr
    await lab.call("sandbox.delete", Ref(id=lab.id))
    assert not left_mounted(lab.id)


async def test_a_limited_box_is_recycled(small: Lab) -> None:
    for _ in range(2):
        await small.run("head -c 100m /dev/zero >/srv/big; mkdir /new; ln -s / /new/root")
        assert await small.recycle() == wire.Recycled(ok=True)
        assert await small.out("ls /srv /new 2>/dev/null || true") in ("", "/srv:")
    assert (await stats(small)).disk_bytes < 2 * MB


async def test_files_and_limit_outlive_stop_and_start(small: Lab) -> None:
    await small.run("echo kept >/srv/file")
    await small.call("sandbox.stop", Ref(id=small.id))
    await small.call("sandbox.start", Ref(id=small.id))
    assert await small.out("cat /srv/file") == "kept"
    assert b"No space left" in (await small.run("head -c 100m /dev/zero >/srv/big")).stderr


async def test_after_a_reboot_the_disk_is_mounted_again_and_never_blank(small: Lab) -> None:
    await small.run("echo kept >/srv/file")
    await small.call("sandbox.stop", Ref(id=small.id))
    box_disk = disk.Disk(small.id)
    for point in reversed(box_disk._mounted()):
        assert disk._libc.umount2(os.fsencode(point), 0) == 0
    await small.call("sandbox.start", Ref(id=small.id))
    assert await small.out("cat /srv/file") == "kept"
    assert (await stats(small)).disk_limit < 32 * MB

    await small.call("sandbox.stop", Ref(id=small.id))
    for point in reversed(box_disk._mounted()):
        disk._libc.umount2(os.fsencode(point), 0)
    box_disk.image.rename(box_disk.image.with_suffix(".away"))
    with pytest.raises(HostError, match=r"is gone .* and its files with it; remove the sandbox"):
        await small.call("sandbox.start", Ref(id=small.id))
    assert small.box.state == "exited"
    box_disk.image.with_suffix(".away").unlink()


async def test_a_create_that_fails_leaves_no_disk(host: SandboxHost) -> None:
    with pytest.raises(ImageMissing, match="no-such-image"):
        await Lab(host, disk="32m", image="localhost/no-such-image:1").up()
    assert list(disk.disks_dir().iterdir()) == []


# ---- a node that is killed -----------------------------------------------------------------------------------------


OWNER = """
import asyncio
from rockroll import Sandbox, SandboxConfig
async def main():
    sandbox = await Sandbox(SandboxConfig(memory="64m", disk="32m")).start()
    print(sandbox.id, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_after_kill_9_the_next_node_takes_over_or_removes_every_disk(
    node_home: Path, end_process: Callable[..., None]
) -> None:
    config = SandboxConfig(memory="64m", disk="32m")
    mine, kept = Sandbox(config), Sandbox(config, owner="detached")
    await mine.start()
    await kept.start()
    for each in (mine, kept):
        await each.execute(["sh", "-c", "echo kept >/srv/file"])
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout
    gone = (await owner.stdout.readline()).decode().strip()
    assert disk.Disk(gone).exists()
    node = await connect_node()
    pid = (await node.call("node.info", wire.Empty(), type=NodeInfo)).pid
    os.kill(pid, signal.SIGSTOP)  # so that it does not notice its client's end
    owner.kill()
    await owner.wait()
    end_process(pid, signal.SIGKILL)
    while node.closed is None:
        await asyncio.sleep(0.001)
    again = await Sandbox.attach(kept.id)
    with pytest.raises(SandboxNotFound):
        await Sandbox.attach(gone)
    assert not left_mounted(gone) and not disk.Disk(gone).exists()
    for each in (mine, again):
        assert (await each.execute(["cat", "/srv/file"])).stdout == b"kept\n"
    assert b"No space left" in (await again.execute(["sh", "-c", "head -c 100m /dev/zero >/srv/big"])).stderr
    assert 0 < (await again.stats()).disk_limit <= 32 * MB
    await again.delete()
    await mine.delete()
    assert not left_mounted(kept.id) and list(disk.disks_dir().iterdir()) == []
    await close_node()
