"""What the node's sandbox host promises about lives: owners, deaths, restarts, limits, a host that was killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable
from pathlib import Path
from socket import socket as Socket

import pytest

from rockroll import home, rpc
from rockroll.errors import HostError, ImageMissing, SandboxError, SandboxLost, SandboxNotFound, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.node.host import SandboxHost
from tests.conftest import allow_unenforced, needs_limits
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")


def ref(lab: Lab) -> wire.Ref:
    return wire.Ref(id=lab.id)


# ---- life ----------------------------------------------------------------------------------------------------------


async def test_a_box_is_found_by_id_prefix_and_name(host: SandboxHost) -> None:
    lab = await Lab(host, name="lookup").up()
    assert host.resolve("lookup") == host.resolve(lab.id[:8]) == host.resolve(lab.id) == lab.id
    with pytest.raises(UsageError, match="lookup"):
        await Lab(host, name="lookup").up()
    await lab.call("sandbox.delete", ref(lab))
    with pytest.raises(SandboxNotFound):
        host.resolve("lookup")


async def test_a_setting_that_there_is_not_is_named(host: SandboxHost) -> None:
    with pytest.raises(UsageError, match="memmory"):
        await Lab(host, memmory="1g").up()
    with pytest.raises(UsageError, match="memory: 64k"):
        await Lab(host, memory="64k").up()
    with pytest.raises(ImageMissing):
        await Lab(host, image="localhost/no-such-image:1").up()
    assert not [info for info in await Lab(host).call("sandbox.list", wire.List()) if "no-such" in info.image]


async def test_a_create_that_is_cancelled_leaves_nothing(host: SandboxHost) -> None:
    before = host.count()
    for delay in (0.0, 0.03, 0.1, 0.2):
        creating = asyncio.create_task(Lab(host).up())
        await asyncio.sleep(delay)
        creating.cancel()
        (made,) = await asyncio.gather(creating, return_exceptions=True)
        if isinstance(made, Lab):  # it was quicker
            await made.call("sandbox.delete", ref(made))
    await asyncio.gather(*host._ends._tasks)
    assert host.count() == before
    assert len(await host._podman.list({"rockroll.home": home.home_id()})) == before


@pytest.mark.parametrize("ms", [2, 5, 11, 20, 50])
async def test_a_box_that_is_deleted_while_it_is_made_leaves_nothing(host: SandboxHost, ms: int) -> None:
    before = {info.id for info in await Lab(host).call("sandbox.list", wire.List())}
    creating = asyncio.create_task(Lab(host).up())
    while not (new := host._boxes.keys() - before):
        await asyncio.sleep(0)
    await asyncio.sleep(ms / 1000)
    await Lab(host).call("sandbox.delete", wire.Ref(id=new.pop()))
    with pytest.raises(SandboxError):
        await creating
    assert host.count() == len(before)
    assert len(await host._podman.list({"rockroll.home": home.home_id()})) == len(before)


async def test_stop_and_start_keep_files_and_lose_processes(lab: Lab) -> None:
    await lab.run("echo kept >/srv/file; x=1; setsid -f sleep 99")
    assert (await lab.call("sandbox.stop", ref(lab))).state == "stopped"
    for late in (lab.run("true"), lab.execute("true")):
        with pytest.raises(SandboxLost, match="stopped"):
            await late
    assert (await lab.call("sandbox.stop", ref(lab))).state == "stopped"
    assert (await lab.call("sandbox.start", ref(lab))).state == "running"
    assert (await lab.run("cat /srv/file; echo [$x]")).stdout == b"kept\n[]\n"
    assert not (await lab.recycle()).ok


async def test_stop_ends_running_commands_at_once(lab: Lab) -> None:
    await lab.run("true")
    running = [asyncio.create_task(lab.run("sleep 60", 60)), asyncio.create_task(lab.execute("sleep", "60"))]
    while len(lab.named("60")) < 2:
        await asyncio.sleep(0.01)
    await lab.call("sandbox.stop", ref(lab))
    assert [(await call).outcome for call in running] == ["killed", "killed"]


async def test_a_box_that_dies_ends_its_calls_as_lost_and_can_be_started_again(lab: Lab) -> None:
    await lab.run("true")
    running = [asyncio.create_task(lab.run("sleep 60", 60)), asyncio.create_task(lab.execute("sleep", "60"))]
    queued = asyncio.create_task(lab.run("echo never", 60))
    while len(lab.named("60")) < 2:
        await asyncio.sleep(0.01)
    os.kill(lab.box.init, signal.SIGKILL)
    async with asyncio.timeout(2):
        assert [(await call).outcome for call in running] == ["lost", "lost"]
        with pytest.raises((SandboxLost, SandboxError)):
            await queued
    while lab.box.state == "running":
        await asyncio.sleep(0.005)
    assert (await lab.call("sandbox.get", ref(lab))).state == "exited"
    with pytest.raises(SandboxLost, match="exited"):
        await lab.run("true")
    assert (await lab.call("sandbox.start", ref(lab))).state == "running"
    assert (await lab.run("echo back")).stdout == b"back\n"


async def test_a_box_is_deleted_at_its_time_to_live(host: SandboxHost) -> None:
    lab = await Lab(host, ttl="1s").up()
    async with asyncio.timeout(5):
        while lab.id in host._boxes:
            await asyncio.sleep(0.05)


async def test_a_removal_that_fails_forgets_nothing_and_can_be_repeated(
    host: SandboxHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = await Lab(host, name="stays").up()
    await lab.run("x=1")

    async def refuse(*_: object) -> None:
        raise HostError("Podman did not answer")

    with monkeypatch.context() as patch:
        patch.setattr(host._podman, "remove", refuse)
        with pytest.raises(HostError):
            await lab.call("sandbox.delete", ref(lab))
    assert "stays" in [row.name for row in host._registry.rows()]
    assert await lab.out("echo $x") == "1"
    assert (await lab.call("sandbox.delete", ref(lab))).state == "gone"
    with pytest.raises(SandboxNotFound, match="it was deleted"):
        host.resolve("stays")


async def test_a_time_to_live_that_podman_does_not_carry_out_is_tried_again(
    host: SandboxHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        refused.set()
        raise HostError("Podman did not answer")

    refused = asyncio.Event()
    with monkeypatch.context() as patch:
        patch.setattr("rockroll.sandbox.node.ends.REMOVE_AGAIN_S", 0.2)
        patch.setattr(host._podman, "remove", refuse)
        lab = await Lab(host, ttl="1s").up()
        await asyncio.wait_for(refused.wait(), 5)
        assert lab.id in host._boxes
    async with asyncio.timeout(5):
        while lab.id in host._boxes:
            await asyncio.sleep(0.01)


@needs_limits
async def test_limits_and_use_are_read_from_the_kernel(lab: Lab) -> None:
    await lab.run("head -c 1000000 /dev/zero >/srv/file; sleep 9 & true")
    stats = await lab.call("sandbox.stats", ref(lab))
    assert (stats.memory_limit, stats.pids_limit, stats.pids) == (128 << 20, 64, 3)
    assert stats.cpu_s > 0 and stats.memory_bytes > 0 and stats.disk_bytes >= 1_000_000


async def test_logs_are_followed_to_the_end_of_the_box(host: SandboxHost) -> None:
    lab = await Lab(host).up()
    got = bytearray()

    async def follow() -> None:
        async for chunk in lab.handlers["logs"](wire.Logs(id=lab.id, follow=True), lab.peer):
            assert chunk.offset == len(got)
            got.extend(chunk.data)

    following = asyncio.create_task(follow())
    await lab.run("echo one; sleep 0.1; echo two")
    await lab.execute("echo", "three")
    await lab.call("sandbox.delete", ref(lab))
    await asyncio.wait_for(following, 2)
    assert b"[default] $ echo one" in got and got.endswith(b"[execute] $ echo three\nthree\n")


# ---- over rpc ------------------------------------------------------------------------------------------------------


async def test_a_connections_boxes_and_commands_end_with_it(host: SandboxHost) -> None:
    address = f"unix://{home.runtime_dir() / 'own.sock'}"
    server = rpc.Server(address, host.handlers(), types=wire.BODIES, on_disconnect=host.on_disconnect)
    await server.start()
    one, two = await rpc.connect(address), await rpc.connect(address)
    try:
        config = {"memory": "64m"}
        mine = await one.call("sandbox.create", wire.Create(config=config), type=wire.SandboxInfo)
        other = await two.call("sandbox.create", wire.Create(config=config), type=wire.SandboxInfo)
        shared = Lab(host)
        shared.id = other.id
        call = asyncio.create_task(one.call("session.run", wire.Run(id=other.id, command=b"sleep 777")))
        while not shared.named("777"):
            await asyncio.sleep(0.01)
        await one.close()
        await asyncio.gather(call, return_exceptions=True)
        async with asyncio.timeout(5):
            while mine.id in host._boxes or shared.named("777"):
                await asyncio.sleep(0.01)
        assert host.resolve(other.id) == other.id
        again = wire.Run(id=other.id, command=b"echo usable")
        assert (await two.call("session.run", again, type=wire.Observation)).stdout == b"usable\n"
    finally:
        await two.close()
        while host.count() and other.id in host._boxes:
            await asyncio.sleep(0.01)
        await server.close()


# ---- hosts one after the other -------------------------------------------------------------------------------------


async def test_a_new_host_sweeps_boxes_of_dead_owners_and_takes_detached_and_owned_ones_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path))
    allow_unenforced(tmp_path)
    first = SandboxHost()
    await first.start()
    owner = await asyncio.create_subprocess_exec("sleep", "1000")
    gone, owned, kept = Lab(first), await Lab(first).up(), Lab(first)
    gone.peer.pid = owner.pid
    await gone.up()
    created = wire.Create(config={"memory": "64m", "name": "keep"}, owner="detached")
    kept.id = (await kept.call("sandbox.create", created)).id
    await kept.run("echo data >/srv/f; x=1; setsid -f sleep 99")
    await kept.until_saved(b"x=")
    init = kept.box.init
    # As after SIGKILL: nothing of the first one runs on, and it has told nobody.
    await first._service.close()
    first._registry.close()
    owner.kill()
    await owner.wait()
    for each in (gone, owned, kept):
        for session in each.box.sessions.open.values():
            await session.close()
        each.box.hull.forget()
        each.box.log_file.close(remove=False)

    second = SandboxHost()
    await second.start()
    try:
        kept.host, kept.handlers = second, second.handlers()
        assert [info.id for info in await kept.call("sandbox.list", wire.List())] == [owned.id, kept.id]
        with pytest.raises(SandboxNotFound, match="the process that owned it ended"):
            second.resolve(gone.id)
        owned.host, owned.handlers = second, second.handlers()
        await owned.call("sandbox.claim", ref(owned))
        await second.on_disconnect(owned.peer)
        with pytest.raises(SandboxNotFound, match="the process that owned it ended"):
            second.resolve(owned.id)
        assert second.resolve("keep") == kept.id and kept.box.init == init
        assert (kept.box.owner, kept.named("99")) == ("detached", [])
        back = await kept.run("cat /srv/f; echo [$x]")
        assert (back.stdout, back.session_restarted) == (b"data\n[1]\n", True)
        assert [path.name for path in (home.runtime_dir() / "b").iterdir()] == [kept.id]
        await kept.call("sandbox.delete", ref(kept))
        assert await second._podman.list({"rockroll.home": home.home_id()}) == []
    finally:
        await second.close()


async def test_a_host_that_closes_sees_a_removal_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path))
    allow_unenforced(tmp_path)
    host = SandboxHost()
    await host.start()
    lab = Lab(host)
    lab.id = (await lab.call("sandbox.create", wire.Create(config={"memory": "64m"}, owner="detached"))).id
    await lab.run("x=1")
    deleting = asyncio.create_task(lab.call("sandbox.delete", ref(lab)))
    while not host._ends._removing:
        await asyncio.sleep(0)
    deleting.cancel()
    await asyncio.gather(deleting, return_exceptions=True)
    await host.close()
    assert not host._boxes and not list((home.runtime_dir() / "b").iterdir())


async def test_a_box_that_cannot_be_taken_over_is_kept_for_a_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path))
    allow_unenforced(tmp_path)
    first = SandboxHost()
    await first.start()
    lab = Lab(first)
    lab.id = (await lab.call("sandbox.create", wire.Create(config={"memory": "64m"}, owner="detached"))).id
    await lab.run("echo data >/srv/f; x=1")
    await lab.until_saved(b"x=")
    init = lab.box.init
    await first.close()
    cut_off = home.runtime_dir() / "b" / lab.id / "x" / "exec-1.json"  # as after SIGKILL, with an environment in it
    cut_off.write_text("{}")
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    dead, alive = (home.runtime_dir() / f"tty-{pid}-x" for pid in (ended.pid, os.getpid()))
    dead.mkdir()
    alive.mkdir()

    async def fail(*_: object) -> None:
        raise HostError("the port is taken")

    second = SandboxHost()
    with monkeypatch.context() as patch:
        patch.setattr("rockroll.sandbox.net.endpoint.Endpoint.open", fail)
        await second.start()
    try:
        lab.host, lab.handlers = second, second.handlers()
        info = await lab.call("sandbox.get", ref(lab))
        assert (info.state, info.cause) == ("exited", "runtime_crash")
        assert not cut_off.exists() and not dead.exists() and alive.exists()
        assert not Path(f"/proc/{init}").exists()
        assert (await lab.call("sandbox.restore", wire.Restore(id=lab.id))).sessions == ["default"]
        assert await lab.out("cat /srv/f; echo $x") == "data\n1"
        await lab.call("sandbox.delete", ref(lab))
    finally:
        await second.close()


# ---- the endpoint --------------------------------------------------------------------------------------------------

TALK = "import socket; s = socket.create_connection(('127.0.0.1', 41414), 2); print(s.recv(9).decode())"


async def test_the_endpoint_listens_before_the_first_command_and_after_every_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path))
    allow_unenforced(tmp_path)
    servers: dict[str, asyncio.AbstractServer] = {}
    gone: list[str] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async def on_endpoint(id: str, sock: Socket) -> None:
        servers[id] = await asyncio.start_server(answer, sock=sock)

    host = SandboxHost(
        endpoint_port=41414, on_endpoint=on_endpoint, on_endpoint_gone=gone.append, env=lambda id: {"BOX": id}
    )
    await host.start()
    try:
        lab = await Lab(host).up()
        talk: Awaitable[wire.Observation] = lab.execute("python3", "-c", TALK)
        assert (await talk).stdout == b"hello\n"
        assert await lab.out("echo $BOX") == lab.id
        assert (await lab.recycle()).ok
        assert (await lab.execute("python3", "-c", TALK)).stdout == b"hello\n"
        await lab.call("sandbox.stop", ref(lab))
        assert gone == [lab.id]
        await lab.call("sandbox.start", ref(lab))
        assert (await lab.execute("python3", "-c", TALK)).stdout == b"hello\n"
    finally:
        await host.close()
        for server in servers.values():
            server.close()
