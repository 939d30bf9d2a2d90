"""What `sandbox.recycle` promises: as good as new, proved, or destroyed with the reason."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from rockroll.errors import SandboxError
from rockroll.sandbox import wire
from rockroll.sandbox.boxes import recycle
from rockroll.sandbox.fs import files
from rockroll.sandbox.linux.beneath import Descent
from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRACES = """
mkdir -p /srv/a/b /new/deep /root/.config /dev/newdir
echo x | tee /srv/a/b/f /new/deep/f /root/.config/x /tmp/t /dev/shm/s /dev/newdir/f /etc/new.conf >/dev/null
ln -s /etc /new/link; mkfifo /new/fifo; chmod 000 /new/deep; mkdir -m 000 /srv/locked; ln -s / /dev/shm/root
touch '/srv/-rf *' $'/srv/new\\nline'; ln /tmp/t /tmp/t2; chown 1000:1000 /tmp/t
x=secret; cd /srv; setsid -f sleep 111; sleep 222 &
"""


async def snapshot(lab: Lab) -> bytes:
    return (await lab.execute("sh", "-c", "find / -xdev | sort; find /dev /tmp /run /root | sort")).stdout


async def test_a_recycled_box_is_as_it_was(lab: Lab) -> None:
    before = await snapshot(lab)
    init = lab.box.init
    for _ in range(3):
        assert (await lab.run(TRACES)).exit_code == 0
        await lab.call("file.write", wire.WriteFile(id=lab.id, path=b"/home/x/y", data=b"z"))
        assert await lab.recycle() == wire.Recycled(ok=True)
        assert lab.processes() == [] and lab.box.init == init
    assert await snapshot(lab) == before
    fresh = await lab.run("echo [$x] $PWD")
    assert (fresh.stdout, fresh.session_restarted) == (b"[] /\n", False)


async def test_an_unused_box_recycles(lab: Lab) -> None:
    assert (await lab.recycle()).ok


async def test_the_log_of_the_last_user_is_gone(lab: Lab) -> None:
    await lab.run("echo private")
    await lab.recycle()
    assert [chunk async for chunk in lab.handlers["logs"](wire.Logs(id=lab.id), lab.peer)] == []


async def test_what_is_under_way_ends_before_the_box_is_new(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    write, begun, go_on = files.write, threading.Event(), threading.Event()

    def write_slowly(*args: Any) -> None:
        begun.set()
        go_on.wait(20)
        write(*args)

    monkeypatch.setattr(files, "write", write_slowly)
    body = wire.WriteFile(id=lab.id, path=b"/srv/late", data=b"z")
    abandoned = asyncio.create_task(lab.call("file.write", body))
    await asyncio.to_thread(begun.wait, 20)
    abandoned.cancel()  # its thread goes on
    calls = [asyncio.create_task(lab.execute("sh", "-c", "echo theirs; sleep 111")) for _ in range(4)]
    recycling = asyncio.create_task(lab.recycle())
    done, _ = await asyncio.wait([recycling], timeout=0.1)
    assert not done
    with pytest.raises(SandboxError, match="being recycled"):
        await lab.call("file.write", body)
    with pytest.raises(SandboxError, match="being recycled"):
        await lab.call("command.start", wire.Start(id=lab.id, command_id="1", command=b"true"))
    go_on.set()
    assert await recycling == wire.Recycled(ok=True)
    assert {(await call).outcome for call in calls} == {"killed"}
    assert lab.processes() == [] and lab.box.log_file.size == 0
    assert await lab.out("ls /srv") == ""


async def test_a_busy_box_is_recycled_under_its_command(lab: Lab) -> None:
    running = asyncio.create_task(lab.run("while :; do echo x >>/srv/grow; setsid -f sleep 111; sleep 0.01; done"))
    while len(lab.processes()) < 5:
        await asyncio.sleep(0.01)
    recycled = await lab.recycle()
    assert (recycled.ok, (await running).outcome) == (True, "killed")
    assert await lab.out("ls /srv; pgrep -c sleep || true") in ("0", "")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("rm /usr/bin/tee", "/usr/bin/tee of the image was deleted"),
        ("rm -r /srv", "/srv of the image was"),
        ("echo x >>/etc/passwd", "/etc/passwd of the image was changed"),
        ("chmod 600 /etc/passwd", "/etc/passwd of the image was changed"),
        ("chmod 700 /srv", "owner or mode of /srv"),
        ("chown 1000 /srv", "owner or mode of /srv"),
        ("rm -r /srv; mkdir /srv", "/srv of the image was replaced"),
        ("mv /srv /srv2; true", "/srv"),
        ("echo 1.2.3.4 evil >>/etc/hosts", "/etc/hosts was changed"),
        ("rm /dev/fd", "/dev/fd was changed"),
        ("ln -sfn /srv /dev/fd", "/dev/fd was changed"),
        ('python3 -c \'import os; [(os.mkdir("d"), os.chdir("d")) for _ in range(300)]\'', "200 deep"),
        ("python3 -c 'import ctypes; print(ctypes.CDLL(None).shmget(7, 4096, 0o1600))'", "System V"),
    ],
)
async def test_what_cannot_be_undone_destroys_the_box(host: SandboxHost, command: str, reason: str) -> None:
    lab = await Lab(host).up()
    done = await lab.run(command)
    assert done.outcome == "ok", done
    recycled = await lab.recycle()
    assert not recycled.ok and reason in recycled.reason
    assert lab.id not in host._boxes


@pytest.mark.parametrize("where", ["/srv", "/dev/shm", "/srv/one"])
async def test_more_than_is_worth_removing_destroys_the_box(
    host: SandboxHost, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recycle, "MOST_ENTRIES", 100)
    lab = await Lab(host).up()
    await lab.run(f"mkdir -p {where}; cd {where}; touch $(seq 101)")
    assert "more than 100 files were made" in (await lab.recycle()).reason


async def test_a_box_with_a_writable_mount_is_never_recycled(host: SandboxHost, tmp_path: Path) -> None:
    lab = await Lab(host, mounts=[f"{tmp_path}:/mnt"]).up()
    recycled = await lab.recycle()
    assert not recycled.ok and "/mnt is writable" in recycled.reason


@pytest.mark.parametrize("mode", ["", ":ro"])
async def test_nothing_of_the_hosts_is_emptied_where_it_is_in_memory_too(host: SandboxHost, mode: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shown:
        lab = await Lab(host, mounts=[f"{shown}:/var/run/out{mode}"]).up()  # /var/run is a link
        assert "/run/out" not in lab.box.hull.memory
        (Path(shown) / "results").write_text("x")
        recycled = await lab.recycle()
        assert recycled.ok == bool(mode) and ("/run/out is writable" in recycled.reason) == (not mode)
        assert (Path(shown) / "results").read_text() == "x"


async def test_a_mount_point_may_have_any_name(host: SandboxHost, tmp_path: Path) -> None:
    lab = await Lab(host, mounts=[f"{tmp_path}:/srv/\u00e9 \\040"]).up()
    (tmp_path / "seen").touch()
    assert await lab.out("ls /srv/*/") == "seen"
    assert "/srv/\u00e9 \\040 is writable" in (await lab.recycle()).reason


async def test_what_links_point_at_is_not_touched(lab: Lab, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.write_text("x")
    await lab.run(f"mkdir -p /srv/x; ln -s {tmp_path} /srv/x/out; ln -s /usr /srv/x/usr; ln -s ../../../.. /dev/shm/up")
    assert (await lab.recycle()).ok
    assert marker.exists()
    assert await lab.out("ls /usr/bin/env") == "/usr/bin/env"


async def test_the_size_of_a_layer_counts_each_file_once_and_never_what_a_swapped_link_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper, outside = tmp_path / "upper", tmp_path / "outside"
    for folder in (upper / "a/b/c", outside):
        folder.mkdir(parents=True)
        (folder / "f").write_bytes(b"x" * 100_000)
    (upper / "hard").hardlink_to(upper / "a/b/c/f")
    size = (upper / "hard").stat().st_blocks * 512
    assert recycle.disk_bytes(upper) == size
    enter = Descent.enter

    def swap_before(way: Descent, name: bytes) -> None:
        if name == b"b":
            (upper / "a").rename(upper / "was")
            (upper / "a").symlink_to(tmp_path)
        if name == b"c":
            (upper / "was/b/c").rename(upper / "was/b/d")
            (upper / "was/b/c").symlink_to(outside)
        enter(way, name)

    monkeypatch.setattr(Descent, "enter", swap_before)
    assert recycle.disk_bytes(upper) == size  # of `hard`
