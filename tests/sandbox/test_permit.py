"""Real boxes from warm pools, quotas and limits of a real host."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from rockroll import home
from rockroll.errors import HostError, QuotaExceeded, SandboxNotFound, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.container.podman import HOME_LABEL
from rockroll.sandbox.node import limits, node_config, permit
from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")
SMALL = {"memory": "64m", "pids": 32, "allow_unenforced": False}  # as the pool's


def pool(lab: Lab, **more: object) -> wire.PoolSet:
    return wire.PoolSet(**{"name": "p", "size": 1, "config": SMALL, **more})  # type: ignore[arg-type]


async def filled(lab: Lab) -> wire.PoolInfo:
    info = await lab.call("pool.filled", wire.PoolRef(name="p"))
    assert info.fault is None
    return info


@pytest.fixture
def node_yaml() -> Iterator[Callable[[str], object]]:
    """node_yaml(text): the file says that, and what this host's user needs besides."""
    file = node_config.path()
    before = file.read_text() if file.exists() else ""
    yield lambda text: file.write_text(text + before)
    file.write_text(before)


@pytest_asyncio.fixture(loop_scope="module")
async def warm(host: SandboxHost) -> AsyncIterator[Lab]:
    """A caller, and a pool of one box."""
    lab = Lab(host, **SMALL)
    await lab.call("pool.set", pool(lab))
    await filled(lab)
    yield lab
    for info in await lab.call("pool.list", wire.Empty()):
        await lab.call("pool.delete", wire.PoolRef(name=info.name))
    await host.on_disconnect(lab.peer)
    while host._maker.warm._removals:
        await asyncio.gather(*host._maker.warm._removals, return_exceptions=True)
    assert host.count() == 0
    assert not await host._podman.list({HOME_LABEL: home.home_id()})


async def test_a_warm_box_is_as_a_new_one_with_its_own_name_and_labels(warm: Lab) -> None:
    (ready,) = warm.host._maker.warm.boxes
    assert not await warm.call("sandbox.list", wire.List()), "nobody's box is shown to nobody"
    with pytest.raises(SandboxNotFound):
        warm.host.resolve(ready.id)
    info = await warm.call("sandbox.create", wire.Create(config={**SMALL, "name": "mine", "labels": {"job": "a"}}))
    warm.id = info.id
    assert (info.id, info.name, info.labels) == (ready.id, "mine", {"job": "a"})
    assert await warm.call("session.list", wire.Ref(id=info.id)) == []
    done = await warm.run("echo $PWD $- $?")
    assert not done.session_restarted and done.stdout.startswith(b"/ ")
    assert [row.id for row in warm.host._registry.rows() if row.owner_pid == os.getpid()] == [ready.id]
    assert (await filled(warm)).taken == 1


async def test_the_session_that_is_open_already_can_be_made_as_if_it_were_not(warm: Lab) -> None:
    await warm.up()
    shell = warm.box.sessions.open["default"].info().pid
    made = await warm.call("session.create", wire.SessionSpec(id=warm.id, session="default"))
    assert made.pid == shell
    with pytest.raises(Exception, match="session 'default' exists"):
        await warm.call("session.create", wire.SessionSpec(id=warm.id, session="default"))
    await filled(warm)
    await warm.up()
    await warm.call("session.create", wire.SessionSpec(id=warm.id, session="default", env={"A": "1"}, cwd="/tmp"))
    assert await warm.out("echo $A $PWD") == "1 /tmp"


async def test_a_warm_box_stops_starts_and_is_recycled_like_any(warm: Lab) -> None:
    await warm.up()
    await warm.run("touch /srv/mine; cd /srv")
    assert (await warm.recycle()).ok
    assert await warm.out("ls /srv; pwd") == "/"
    await filled(warm)
    await warm.up()
    await warm.call("sandbox.stop", wire.Ref(id=warm.id))
    await warm.call("sandbox.start", wire.Ref(id=warm.id))
    assert not (await warm.run("true")).session_restarted, "nobody had a session before"


async def test_a_box_that_dies_in_its_pool_is_replaced(warm: Lab) -> None:
    (ready,) = warm.host._maker.warm.boxes
    os.kill(ready.init, signal.SIGKILL)
    while ready in warm.host._maker.warm.boxes:
        await asyncio.sleep(0.005)
    await filled(warm)
    await warm.up()
    assert warm.id != ready.id and await warm.out("echo lives") == "lives"


async def test_boxes_of_an_image_that_was_replaced_are_not_given(warm: Lab) -> None:
    """Podman's list of images changes as an image is tagged; only a name that means another image counts."""
    (ready,) = warm.host._maker.warm.boxes
    file = warm.host._maker._images._file
    os.utime(file)
    await warm.up()
    assert warm.id == ready.id, "the same image"
    await filled(warm)
    (ready,) = warm.host._maker.warm.boxes
    ready.image = "sha256:of-another-day"
    await warm.up()
    assert warm.id != ready.id


async def test_a_quota_is_refused_at_once_and_holds_from_the_next_box_on(
    warm: Lab, node_yaml: Callable[[str], object]
) -> None:
    node_yaml("quotas: {owner: {boxes: 1}}\n")
    await warm.up()
    for config in (SMALL, {"memory": "65m"}):
        with pytest.raises(QuotaExceeded, match=r"quotas\.owner\.boxes is 1; owner 'process \d+' has 1"):
            await warm.call("sandbox.create", wire.Create(config=config))
    labelled = await warm.call("sandbox.create", wire.Create(config={**SMALL, "labels": {"owner": "alice"}}))
    assert labelled.labels == {"owner": "alice"}
    node_yaml("quotas: {owner: {boxes: 2}}\n")
    await warm.up()


async def test_many_at_once_do_not_slip_past_a_quota(warm: Lab, node_yaml: Callable[[str], object]) -> None:
    node_yaml("quotas: {owner: {boxes: 3}}\n")
    asked = [warm.call("sandbox.create", wire.Create(config=SMALL)) for _ in range(8)]
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(each, QuotaExceeded) for each in done].count(True) == 5


async def test_a_wrong_file_stops_new_boxes_and_says_where(warm: Lab, node_yaml: Callable[[str], object]) -> None:
    node_yaml("quotas:\n  ownr: {}\n")
    with pytest.raises(UsageError, match=r"node\.yaml:2: quotas\.ownr: no such key; did you mean owner"):
        await warm.up()


async def test_pools_of_the_file_come_and_go_with_it(warm: Lab, node_yaml: Callable[[str], object]) -> None:
    node_yaml("pools: {other: {size: 1, config: {memory: 70m}}}\n")
    assert [info.name for info in await warm.call("pool.list", wire.Empty())] == ["p", "other"]
    assert (await warm.call("pool.filled", wire.PoolRef(name="other"))).in_file
    node_yaml("")
    assert [info.name for info in await warm.call("pool.list", wire.Empty())] == ["p"]


async def test_a_warm_box_gives_way_to_somebody_before_a_limit_refuses(
    warm: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = limits.read(Path("/"))
    host = warm.host

    def full() -> limits.Facts:
        # Room for one box beside nothing: the warm one holds the last lock.
        there = host.count()
        return real._replace(locks=limits.locks.Locks(1, min(1, there)))

    monkeypatch.setattr(host._maker.permit, "_read", full)
    monkeypatch.setattr(permit, "FRESH_S", 0.0)
    await warm.call("sandbox.create", wire.Create(config={"memory": "72m"}))
    (info,) = await warm.call("pool.list", wire.Empty())
    assert info.ready == 0
    with pytest.raises(HostError, match=r"no room for another sandbox: Podman locks: .*podman system renumber"):
        await warm.call("sandbox.create", wire.Create(config={"memory": "73m"}))
    monkeypatch.undo()
    host._maker.permit._known = None


async def test_a_pool_ends_with_its_connection(warm: Lab) -> None:
    other = Lab(warm.host)
    await other.call("pool.set", pool(other, name="theirs", config={"memory": "80m"}, owner="connection"))
    await warm.host.on_disconnect(other.peer)
    assert [info.name for info in await warm.call("pool.list", wire.Empty())] == ["p"]


async def test_ten_waiting_for_one_place_are_gone_as_their_callers_are(host: SandboxHost) -> None:
    lab = Lab(host, **SMALL)
    calls = [asyncio.create_task(Lab(host, **SMALL).up()) for _ in range(10)]
    await asyncio.sleep(0.05)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.gather(*host._ends._tasks, *host._ends._removing.values(), return_exceptions=True)
    assert host._maker._admission.waiting() == {} and host._maker._admission.running == 0
    for info in await lab.call("sandbox.list", wire.List()):
        await lab.call("sandbox.delete", wire.Ref(id=info.id))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the system calls are this machine's")
async def test_a_box_needs_no_keyring_of_the_kernels_and_can_make_none(shared: Lab) -> None:
    """Box 201 would fail: the user that stands for every box's root may have 200."""
    add_key, request_key, keyctl = 248, 249, 250
    for call in (add_key, request_key, keyctl):
        said = await shared.execute("perl", "-e", f"syscall({call}, 0, 0, 0, 0, 0); print $! + 0")
        assert said.stdout in (b"1", b"38"), "EPERM, or ENOSYS as if the kernel had none"
    assert "keyring = false" in (home.home() / "conf" / "containers.conf").read_text()


async def test_what_podman_wrote_down_at_a_start_is_what_it_says(shared: Lab) -> None:
    hull, podman = shared.box.hull, shared.host._podman
    said, read = await podman.inspect(shared.box.container), hull._started()
    assert read is not None
    assert {key: said["State"][key] for key in ("Pid", "ConmonPid")} == {
        key: read["State"][key] for key in ("Pid", "ConmonPid")
    }
    assert read["OCIConfigPath"] == said["OCIConfigPath"]
    assert read["GraphDriver"]["Name"] == said["GraphDriver"]["Name"]
    data = said["GraphDriver"]["Data"]
    assert read["GraphDriver"]["Data"] == {key: data[key] for key in ("LowerDir", "UpperDir")}
