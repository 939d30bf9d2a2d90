"""What a box is told about the machine: its own share, read-only, and true when a command begins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rockroll.errors import HostError, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container import profile, share
from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import Lab, needs_cgroups

pytestmark = pytest.mark.asyncio(loop_scope="module")
CPUS = len(os.sched_getaffinity(0))


@needs_cgroups
async def test_free_tells_the_boxs_memory(shared: Lab) -> None:
    total, swap = (await shared.out("free -b | awk '{print $2}' | tail -2")).split()
    assert (int(total), int(swap)) == (128 << 20, 0)


@needs_cgroups
async def test_what_is_used_is_as_of_the_begin_of_the_command(shared: Lab) -> None:
    ask = 'awk \'$1 == "MemFree:" || $1 == "MemAvailable:" {print $2}\' /proc/meminfo'
    await shared.out("head -c 20m /dev/zero >/dev/shm/kept")
    free, available = map(int, (await shared.out(ask)).split())
    assert free < (108 << 10) and available < (108 << 10), "what is in /dev/shm is memory, and cannot be dropped"
    await shared.out("rm /dev/shm/kept")
    assert int((await shared.out(ask)).split()[0]) > free + (15 << 10)


async def test_it_cannot_be_written_from_inside(shared: Lab) -> None:
    for path in (share.MEMINFO, share.ONLINE):
        for attempt in (f"echo 1 > {path}", f"rm -f {path}", f"mv {path} /tmp/x", f"mount -o remount,rw,bind {path}"):
            assert (await shared.run(attempt)).exit_code != 0, attempt
        assert (await shared.run(f"umount {path}")).exit_code != 0


async def test_a_recycled_box_is_told_the_same(lab: Lab) -> None:
    before = await lab.out("grep MemTotal /proc/meminfo; nproc; cat /sys/devices/system/cpu/online")
    assert (await lab.recycle()).ok
    assert await lab.out("grep MemTotal /proc/meminfo; nproc; cat /sys/devices/system/cpu/online") == before


@needs_cgroups
async def test_it_is_told_again_after_stop_and_start(lab: Lab) -> None:
    await lab.call("sandbox.stop", wire.Ref(id=lab.id))
    await lab.call("sandbox.start", wire.Ref(id=lab.id))
    assert await lab.out("nproc") == "1"


@needs_cgroups
@pytest.mark.skipif(CPUS < 2, reason="one CPU: there is no smaller share of it")
async def test_nproc_and_cpu_count_tell_the_quota(shared: Lab) -> None:
    asked = "nproc; python3 -c 'import os; print(os.cpu_count())'"
    assert (await shared.out(asked)).split() == ["1", "1"]
    assert (await shared.execute("nproc")).stdout == b"1\n"


async def test_who_says_how_many_threads_is_believed(host: SandboxHost) -> None:
    lab = await Lab(host, env={"OMP_NUM_THREADS": "7"}).up()
    assert (await lab.execute("printenv", "OMP_NUM_THREADS")).stdout == b"7\n"
    await lab.call("sandbox.delete", wire.Ref(id=lab.id))


@needs_cgroups
@pytest.mark.skipif(CPUS < 2, reason="one CPU: there is no other to keep a box from")
async def test_a_cpuset_holds_and_is_read_back(host: SandboxHost) -> None:
    last = max(os.sched_getaffinity(0))
    lab = await Lab(host, cpuset=str(last), cpus=CPUS).up()
    try:
        inside = "nproc; python3 -c 'import os; print(os.cpu_count(), *os.sched_getaffinity(0))'"
        assert (await lab.out(inside)).split() == ["1", "1", str(last)]
        assert lab.box.unenforced == []
        assert profile.cpus_of(lab.box.init) == {last}
        assert (await lab.run(f"taskset -c {min(os.sched_getaffinity(0))} true")).exit_code != 0
        wider = SandboxConfig(cpuset=str(min(os.sched_getaffinity(0))), memory="128m", pids=64, cpus=CPUS)
        assert profile.verify(lab.box.init, wider) == ["cpuset"]
    finally:
        await lab.call("sandbox.delete", wire.Ref(id=lab.id))


@pytest.mark.parametrize("text", ["", "0-", "1-0", "a", "0,,1", "-1"])
async def test_a_cpuset_that_cannot_be_read_is_refused(host: SandboxHost, text: str) -> None:
    with pytest.raises(UsageError, match="cpuset: numbers and ranges"):
        await Lab(host, cpuset=text).up()


async def test_a_cpuset_that_this_host_lacks_is_refused(host: SandboxHost) -> None:
    with pytest.raises(HostError, match="4000 is not among them"):
        await Lab(host, cpuset="0,4000").up()


def figures(text: str) -> dict[str, int]:
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in text.splitlines()}


async def test_the_figures_add_up() -> None:
    parts = {"cache": 30 << 20, "inactive_file": 20 << 20, "active_file": 4 << 20, "shmem": 6 << 20}
    told = figures(share.meminfo(100 << 20, 50 << 20, parts))
    assert told["MemTotal"] == 100 << 20
    assert told["MemFree"] == 50 << 20
    assert told["MemAvailable"] == 74 << 20, "files can be dropped, /dev/shm cannot"
    assert told["Cached"] == 30 << 20
    assert told["SwapTotal"] == told["SwapFree"] == 0


async def test_more_used_than_allowed_is_nothing_free() -> None:
    assert figures(share.meminfo(64 << 20, 65 << 20, {}))["MemFree"] == 0


async def test_without_a_limit_the_hosts_memory_is_told(tmp_path: Path) -> None:
    told = share.Share(tmp_path, SandboxConfig(memory="64m", cpus=0.5))
    told.prepare()
    assert figures((tmp_path / "meminfo").read_text())["MemTotal"] == 64 << 20
    told.attach(None, ["memory", "swap", "pids", "cpus"], os.sched_getaffinity(0))
    host = Path("/proc/meminfo").read_text().splitlines()[0]
    assert (tmp_path / "meminfo").read_text().splitlines()[0] == host
    assert told.variables == {}
    told.close()


@pytest.mark.parametrize(("cpus", "count"), [(0.01, 1), (0.5, 1), (1.0, 1), (1.2, 2), (4096.0, CPUS)])
async def test_a_quota_is_rounded_up_to_cpus(cpus: float, count: int) -> None:
    config: dict[str, Any] = {"cpus": cpus}
    assert len(share.cpus_seen(SandboxConfig(**config))) == min(count, CPUS)
