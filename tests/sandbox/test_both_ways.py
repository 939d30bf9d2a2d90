"""What `Sandbox` promises, in process (the node's unix socket) and over HTTP (`rockroll serve`): the same tests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rockroll import Sandbox, SandboxConfig
from rockroll.errors import FileError, SandboxNotFound, SessionError, UsageError
from rockroll.sandbox.client import delete_snapshot, list_sandboxes, snapshots
from rockroll.sandbox.http.client import HttpNode
from rockroll.sandbox.node_client import close_node
from tests.conftest import needs_freezer, needs_limits

SMALL = SandboxConfig(memory="128m", pids=64, labels={"job": "both ways", "odd&key": "a=b c"})
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(params=["node", "http"], scope="module", loop_scope="module")
async def way(request: pytest.FixtureRequest, node_home: Path) -> AsyncIterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "http":
            patch.setenv("ROCKROLL_BASE_URL", request.getfixturevalue("server"))
        yield request.param
        await close_node()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(way: str) -> AsyncIterator[Sandbox]:
    """One box for the tests that leave it usable."""
    async with Sandbox(SMALL) as box:
        yield box


async def test_the_way_is_the_one_that_was_asked_for(box: Sandbox, way: str) -> None:
    assert isinstance(box._node, HttpNode) == (way == "http")


async def test_a_session_keeps_its_state_and_streams_stay_apart(box: Sandbox) -> None:
    await box.arun("cd /srv; x=7; f() { echo f:$1; }")
    seen = await box.arun(b"pwd; f $x; printf '\\0\\xff' >&2; (exit 3)")
    assert (seen.stdout, seen.stderr, seen.exit_code, seen.outcome) == (b"/srv\nf:7\n", b"\0\xff", 3, "ok")
    assert (await box.arun(b"printf %s '\xff\xfe'")).stdout == b"\xff\xfe"
    await box.create_session("build", env={"STAGE": "one"}, cwd="/usr")
    assert (await box.arun("echo $STAGE $PWD", session="build")).stdout == b"one /usr\n"
    with pytest.raises(SessionError, match="build"):
        await box.create_session("build")
    await box.close_session("build")


async def test_a_session_may_have_any_name(box: Sandbox) -> None:
    name = "a/b c?d=e#f%2Fg ü"
    await box.arun("x=1", session=name)
    assert (await box.arun("echo $x", session=name)).stdout == b"1\n"
    await box.close_session(name)


async def test_programs_have_their_own_input_variables_and_exit_code(box: Sandbox) -> None:
    seen = await box.execute(["sh", "-c", "cat; echo $A; exit 5"], stdin=b"in\0\xff", env={"A": "b"}, cwd="/srv")
    assert (seen.stdout, seen.exit_code) == (b"in\0\xffb\n", 5)
    assert (await box.execute(["sleep", "100"], timeout=0.2)).outcome == "timeout"


async def test_a_cancelled_call_kills_its_command(box: Sandbox) -> None:
    running = asyncio.ensure_future(box.execute(["sleep", "7781"]))
    while "sleep 7781" not in [process.command for process in await box.processes()]:
        await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(5):
        while "sleep 7781" in [process.command for process in await box.processes()]:
            await asyncio.sleep(0.02)


async def test_a_command_streams_takes_input_and_signals_and_is_run_once(box: Sandbox) -> None:
    command = await box.start_command("read line; echo got $line; sleep 100", stdin=True, command_id="talk")
    await command.send_input("hello\n")
    chunks = command.output()
    first = await anext(chunks)
    assert (first.offset, first.stream, first.data) == (0, "stdout", b"got hello\n")
    await chunks.aclose()
    assert (await command.info()).state == "running"
    await command.send_signal("KILL")
    assert (await command.wait()).exit_code == 137
    assert [chunk.data async for chunk in box.command("talk").output(4)] == [b"hello\n"]
    assert "talk" in [info.command_id for info in await box.commands()]
    with pytest.raises(UsageError):
        await box.start_command("echo another", command_id="talk")


async def test_files_carry_exact_bytes_under_any_name(box: Sandbox) -> None:
    data = os.urandom(1 << 20) * 9
    for path in ("/data/deep/a.bin", "/data/ünï &=?#%41+ x", b"/data/\xff\xfe"):
        await box.write_file(path, data, mode=0o640)
        assert await box.read_file(path) == data
        assert (await box.stat(path)).mode == 0o640
    assert await box.read_file("/data/deep/a.bin", offset=5, limit=7) == data[5:12]
    await box.write_file("/data/t", "one\n")
    await box.write_file("/data/t", "two\n", append=True)
    assert await box.read_file("/data/t") == b"one\ntwo\n"
    await box.write_file("/data/empty", b"")
    assert await box.read_file("/data/empty") == b""
    names = {entry.path_bytes for entry in await box.list_files("/data")}
    assert names == {b"deep", "ünï &=?#%41+ x".encode(), b"\xff\xfe", b"t", b"empty"}
    assert "deep/a.bin" in [entry.name for entry in await box.list_files("/data", recursive=True)]


async def test_files_are_made_moved_and_removed_and_what_is_missing_is_named(box: Sandbox) -> None:
    await box.mkdir("/made/here", mode=0o700)
    await box.write_file("/made/here/a", b"x")
    await box.move("/made/here/a", "/made/b")
    assert (await box.exists("/made/here/a"), await box.exists("/made/b")) == (False, True)
    assert (await box.stat("/made/here")).mode == 0o700
    await box.remove("/made", recursive=True)
    for look in (box.stat, box.read_file, box.list_files):
        with pytest.raises(FileError, match="/made"):
            await look("/made")


async def test_trees_go_up_and_come_back(box: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "bin/run").write_bytes(os.urandom(3 << 20))
    (source / "bin/run").chmod(0o755)
    (source / "link").symlink_to("bin/run")
    (source / "same").hardlink_to(source / "bin/run")
    told: list[int] = []
    up = await box.upload(source, "/srv/copy", progress=lambda _, count: told.append(count))
    down = await box.download("/srv/copy", tmp_path / "back")
    assert (up.files, up.folders, up.links) == (down.files, down.folders, down.links) == (2, 3, 1)
    assert told[-1] == 3 << 20
    assert (tmp_path / "back/same").read_bytes() == (source / "bin/run").read_bytes()
    assert (tmp_path / "back/link").readlink() == Path("bin/run")
    with pytest.raises(FileError, match="no-such"):
        await box.upload(tmp_path / "no-such", "/srv/x")
    with pytest.raises(FileError, match="no-such"):
        await box.download("/srv/no-such", tmp_path / "x")


async def test_changes_are_told_as_they_happen(box: Sandbox) -> None:
    await box.mkdir("/srv/watched")
    async with box.watch("/srv/watched") as changes:
        await box.write_file("/srv/watched/new", b"1")
        event = await anext(changes)
        assert (event.kind, event.path) == ("created", "/srv/watched/new")


async def test_the_log_is_followed_from_an_offset(box: Sandbox) -> None:
    await box.arun("echo from the session")
    text = b"".join([part async for part in box.logs()])
    assert b"from the session\n" in text
    following = box.logs(offset=len(text), follow=True)
    waiting = asyncio.ensure_future(anext(following))
    await box.arun("echo later")
    assert b"later" in await waiting
    await following.aclose()


@needs_limits
async def test_a_box_is_looked_at_and_its_environment_changed(box: Sandbox) -> None:
    assert (await box.stats()).memory_limit == 128 << 20
    init, *_ = await box.processes()
    with pytest.raises(UsageError):
        await box.signal(init)
    assert (await box.set_env({"NEW": "1"}))["NEW"] == "1"
    assert "NEW" not in await box.set_env({"NEW": None})
    assert "NEW" not in await box.env()
    assert (await box.refresh()).state == "running"
    for labels, found in ({"odd&key": "a=b c"}, [box.id]), ({"job": "none"}, []):
        assert [info.id for info in await list_sandboxes(labels=labels, state="running")] == found
    async with await Sandbox.attach(box.id[:6]) as same:
        assert same.id == box.id


@needs_freezer
async def test_stop_restore_snapshot_and_fork(way: str) -> None:
    async with Sandbox(SMALL) as sandbox:
        await sandbox.write_file("/srv/a", b"first")
        await sandbox.arun("x=1")
        taken = await sandbox.snapshot(f"taken-{way}")
        assert taken.name in [info.name for info in await snapshots()]
        async with await sandbox.fork() as other:
            await other.write_file("/srv/a", b"second")
        with pytest.raises(SandboxNotFound):
            await other.refresh()
        assert await sandbox.read_file("/srv/a") == b"first"
        await sandbox.stop()
        assert (await sandbox.refresh()).state == "stopped"
        restored = await sandbox.restore()
        assert (restored.info.state, restored.sessions) == ("running", ["default"])
        await delete_snapshot(taken.name)


async def test_a_recycled_box_is_as_new(way: str) -> None:
    async with Sandbox(SMALL) as sandbox:
        await sandbox.arun("x=1; touch /srv/a")
        assert (await sandbox.recycle()).ok
        assert (await sandbox.arun("echo [$x]; ls /srv")).stdout == b"[]\n"


OWNER = """
import asyncio
from rockroll import Sandbox, SandboxConfig
async def main():
    print((await Sandbox(SandboxConfig(memory="128m", pids=64)).start()).id, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_box_is_gone_when_the_process_that_made_it_is_killed(way: str) -> None:
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, stdout=subprocess.PIPE)
    assert owner.stdout
    sandbox = await Sandbox.attach((await owner.stdout.readline()).decode().strip())
    owner.kill()
    await owner.wait()
    async with asyncio.timeout(10):
        async for _ in sandbox.logs(follow=True):  # ends with the box
            pass
    with pytest.raises(SandboxNotFound) as gone:
        await sandbox.refresh()
    assert gone.value.fields["cause"] == "owner_gone"


async def test_a_script_that_closes_nothing_ends_without_a_word_and_leaves_no_box(way: str) -> None:
    script = "from rockroll import Sandbox\nimport asyncio\nprint(asyncio.run(Sandbox().start()).id)"
    script = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said, complaints = await script.communicate()
    assert (script.returncode, complaints) == (0, b"")
    with pytest.raises(SandboxNotFound):
        async for _ in (await Sandbox.attach(said.decode().strip())).logs(follow=True):
            pass
        await Sandbox.attach(said.decode().strip())


async def test_a_port_of_the_box_is_forwarded_and_its_network_told(box: Sandbox) -> None:
    accept = "import socket as s; c = s.create_server(('127.0.0.1', 8099)).accept()[0]"
    answer = "d = c.makefile('rb').read(); c.sendall(d[::-1]); c.close()"
    command = await box.start_command(["python3", "-c", f"{accept}; {answer}"])
    while (await box.execute(["sh", "-c", "grep -q :1FA3 /proc/net/tcp"])).exit_code != 0:
        await asyncio.sleep(0.02)
    data = os.urandom(3 << 20)
    async with box.forward(8099) as place:
        reader, writer = await asyncio.open_connection(place.host, place.port)
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == data[::-1]
        writer.close()
    assert (await command.wait()).exit_code == 0
    failures: list[str] = []
    async with box.forward(8098, on_error=lambda error: failures.append(error.message)) as place:
        reader, writer = await asyncio.open_connection(place.host, place.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    assert "nothing listens there" in failures[0]
    assert (await box.network()).network == "none"
