"""What `sandbox.recycle` promises: as good as new, proved, or destroyed with the reason."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from rockroll.sandbox import wire
from rockroll.sandbox.host import SandboxHost
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


async def test_a_box_with_a_writable_mount_is_never_recycled(host: SandboxHost, tmp_path: Path) -> None:
    lab = await Lab(host, mounts=[f"{tmp_path}:/mnt"]).up()
    recycled = await lab.recycle()
    assert not recycled.ok and "/mnt is writable" in recycled.reason


@pytest.mark.parametrize("mode", ["", ":ro"])
async def test_nothing_of_the_hosts_is_emptied_where_it_is_in_memory_too(host: SandboxHost, mode: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shown:
        lab = await Lab(host, mounts=[f"{shown}:/var/run/out{mode}"]).up()  # /var/run is a link
        assert "/run/out" not in lab.box._memory
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
