"""What a box is allowed, read back from the kernel and tried from inside."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from rockroll import home
from rockroll.errors import HostError, SandboxLost
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container import profile, runtime
from rockroll.sandbox.container.podman import Podman
from rockroll.sandbox.fs import files
from tests.conftest import IS_ROOT
from tests.sandbox.boxes import start_box

SMALL = SandboxConfig(cpus=0.5, memory="64m", pids=32)
only_root = pytest.mark.skipif(not IS_ROOT, reason="an ordinary user's limits depend on the host")


@only_root
async def test_every_limit_asked_for_is_in_the_kernel(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    assert profile.verify(box.pid, SMALL) == []
    assert profile.enforced(box.pid) == {"memory": 64 * 2**20, "swap": 64 * 2**20, "pids": 32, "cpus": 0.5}


@only_root
async def test_a_limit_that_is_not_enforced_is_named(podman: Podman) -> None:
    box = await start_box(podman, SMALL, resource_limits={"memory": {"limit": 64 * 2**20}, "pids": {"limit": 1000}})
    assert profile.verify(box.pid, SMALL) == ["swap", "pids", "cpus"]
    loose = dataclasses.replace(SMALL, pids=1000)
    assert "pids" not in profile.verify(box.pid, loose)


async def test_an_open_door_is_named_too(podman: Podman) -> None:
    changes = {"cap_add": ["CAP_SYS_PTRACE"], "seccomp_profile_path": "unconfined", "no_new_privileges": False}
    box = await start_box(podman, SMALL, **changes)
    assert profile.verify(box.pid, SMALL)[-3:] == ["seccomp", "no-new-privileges", "capabilities"]


@only_root
async def test_too_much_memory_is_killed_and_the_box_lives(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    eating = await asyncio.to_thread(box.run, "python3", "-c", "b = bytearray(200 << 20)")
    assert eating.returncode == 137
    assert box.run("echo", "alive").stdout == "alive\n"


@only_root
async def test_a_fork_bomb_stops_at_the_limit_of_its_box(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    script = "for i in $(seq 100); do sleep 20 & done"
    bomb = await asyncio.to_thread(box.run, "timeout", "-s", "KILL", "2", "bash", "-c", script)
    assert "Resource temporarily unavailable" in bomb.stderr


async def test_a_box_holds_no_privilege_it_does_not_need(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{box.pid}/status").read_text().splitlines())
    # bits of linux/capability.h: chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service
    allowed = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 10))
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == allowed
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert box.run("mount", "-t", "tmpfs", "none", "/mnt").returncode != 0
    assert box.run("mknod", "/dev/sda", "b", "8", "0").returncode != 0


async def test_a_box_has_no_network_but_its_own_loopback(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    assert box.run("ls", "/sys/class/net").stdout.split() == ["lo"]
    assert "unreachable" in box.run("python3", "-c", "import socket; socket.create_connection(('1.1.1.1', 53))").stderr


async def test_root_of_a_box_is_nobody_on_the_host(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    uid, gid = files.host_id(box.pid, "uid", 0), files.host_id(box.pid, "gid", 0)
    inside_unshare = runtime.is_rootless()
    assert (uid, gid) == ((0, 0) if inside_unshare else (runtime.MAPPED_FIRST_ID, runtime.MAPPED_FIRST_ID))
    assert box.run("id", "-u").stdout == "0\n"
    assert box.run("chown", "1:1", "/tmp").returncode == 0


@only_root
async def test_a_writable_mount_can_be_written_and_a_read_only_one_cannot(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("out there")
    box = await start_box(podman, dataclasses.replace(SMALL, mounts=(f"{tmp_path}:/out", f"{tmp_path}:/in:ro")))
    assert box.run("cat", "/in/kept").stdout == "out there"
    assert "Read-only" in box.run("touch", "/in/new").stderr
    assert box.run("touch", "/out/new").returncode == 0
    assert (tmp_path / "new").exists()


async def test_a_mount_of_nothing_is_refused_before_podman_sees_it(node_home: Path) -> None:
    with pytest.raises(HostError, match="/no/such does not exist"):
        profile.create_body(SandboxConfig(mounts=("/no/such:/x",)), name="x")


async def test_an_idle_box_is_one_process_that_ends_on_request(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    assert box.run("sh", "-c", "ls -d /proc/[0-9]* | head -1").stdout == "/proc/1\n"
    assert Path(f"/proc/{box.pid}/cmdline").read_bytes() == f"{profile.INIT}\0-P\0".encode()
    # an orphan is reaped by it
    box.run("sh", "-c", "(sleep 0.05 &) ; exit 0")
    box.run("sleep", "0.2")
    assert "Z" not in box.run("ps", "-e", "-o", "stat=").stdout


async def test_env_labels_and_user_arrive(podman: Podman) -> None:
    box = await start_box(podman, dataclasses.replace(SMALL, env={"A": "b c"}, labels={"team": "x"}, user="1000"))
    assert box.run("sh", "-c", "echo $A; id -u").stdout == "b c\n1000\n"
    labels = (await podman.inspect(box.id))["Config"]["Labels"]
    assert labels["team"] == "x" and labels["rockroll.home"] == home.home_id()


async def test_limits_of_a_dead_box_are_an_error(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    await podman.stop(box.id)
    with pytest.raises(SandboxLost):
        profile.enforced(box.pid)
