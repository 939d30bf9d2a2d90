"""What watching promises: every change, in order, until the loop or the box ends; no link is followed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rockroll import Sandbox, SandboxConfig, rpc
from rockroll.errors import FileError
from rockroll.sandbox import wire
from rockroll.sandbox.client_files import Watch
from rockroll.sandbox.fs.watch import Watcher, _Watch
from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import Lab

SMALL = SandboxConfig(memory="128m", pids=64)
Event = tuple[str, ...]


@pytest.fixture
async def box(node: rpc.Client) -> AsyncIterator[Sandbox]:
    async with Sandbox(SMALL) as sandbox:
        await sandbox.arun("true")
        yield sandbox


async def until(changes: Watch, last: Event) -> list[Event]:
    """Events up to `last`, each (kind, path) or (kind, path, path before); the same twice in a row counts once."""
    seen: list[Event] = []
    async with asyncio.timeout(20):
        while not seen or seen[-1] != last:
            event = await anext(changes)
            told = (event.kind, event.path, *([event.moved_from] if event.moved_from else []))
            if seen[-1:] != [told]:
                seen.append(told)
    return seen


async def test_each_kind_of_change_is_told_in_order(box: Sandbox) -> None:
    async with box.watch("/srv") as changes:
        await box.arun("cd /srv; echo 1 >a; echo 2 >>a; chmod 600 a; mv a b; mkdir d; rm b; rmdir d")
        assert await until(changes, ("deleted", "/srv/d")) == [
            ("created", "/srv/a"),
            ("modified", "/srv/a"),
            ("moved", "/srv/b", "/srv/a"),
            ("created", "/srv/d"),
            ("deleted", "/srv/b"),
            ("deleted", "/srv/d"),
        ]


async def test_files_of_the_image_are_watched_too(box: Sandbox) -> None:
    async with box.watch("/etc") as changes:
        await box.arun("echo x >>/etc/issue; rm /etc/issue.net; mv /etc/motd /etc/motd2 2>/dev/null; touch /etc/end")
        seen = await until(changes, ("created", "/etc/end"))
        assert ("modified", "/etc/issue") in seen
        assert ("deleted", "/etc/issue.net") in seen


async def test_what_the_host_writes_is_told_as_well(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "up").write_text("x")
    async with box.watch("/srv") as changes:
        await box.upload(tmp_path / "up", "/srv/up")
        assert ("created", "/srv/up") in await until(changes, ("modified", "/srv/up"))


async def test_folders_made_later_are_watched_with_all_that_is_in_them(box: Sandbox) -> None:
    async with box.watch("/srv", recursive=True) as changes:
        for i in range(20):
            await box.arun(f"mkdir -p /srv/{i}/b/c; echo x >/srv/{i}/b/c/f; echo y >>/srv/{i}/b/c/f; touch /srv/end{i}")
        seen = await until(changes, ("created", "/srv/end19"))
        for i in range(20):
            for path in (f"/srv/{i}", f"/srv/{i}/b", f"/srv/{i}/b/c", f"/srv/{i}/b/c/f"):
                assert seen.count(("created", path)) == 1, (path, seen)


async def test_a_moved_folder_keeps_being_watched_under_its_new_name_and_one_moved_away_does_not(box: Sandbox) -> None:
    await box.arun("mkdir -p /srv/a/b; echo 1 >/srv/a/b/f")
    async with box.watch("/srv", recursive=True) as changes:
        await box.arun("cd /srv; mv a z; echo 2 >>z/b/f; mv z /root/z; echo 3 >>/root/z/b/f; mv /root/z y")
        assert await until(changes, ("created", "/srv/y/b/f")) == [
            ("moved", "/srv/z", "/srv/a"),
            ("modified", "/srv/z/b/f"),
            ("deleted", "/srv/z"),
            ("created", "/srv/y"),
            ("created", "/srv/y/b"),
            ("created", "/srv/y/b/f"),
        ]
        await box.arun("echo 4 >>/srv/y/b/f")
        assert await until(changes, ("modified", "/srv/y/b/f")) == [("modified", "/srv/y/b/f")]


async def test_a_file_is_watched_across_its_replacement(box: Sandbox) -> None:
    await box.write_file("/srv/conf", "1")
    async with box.watch("/srv/conf") as changes:
        await box.arun("cd /srv; echo other >other; echo 2 >new; mv new conf; rm conf")
        assert await until(changes, ("deleted", "/srv/conf")) == [
            ("moved", "/srv/conf", "/srv/new"),
            ("deleted", "/srv/conf"),
        ]


async def test_a_link_is_never_followed_out(box: Sandbox, tmp_path: Path) -> None:
    await box.arun(f"mkdir -p /srv/t; ln -s {tmp_path} /srv/t/out; ln -s /tmp /srv/t/tmp; ln -s {tmp_path} /srv/direct")
    with pytest.raises(FileError, match="no such file"):
        await anext(box.watch("/srv/direct"))
    async with box.watch("/srv/t", recursive=True) as changes:
        (tmp_path / "host").write_text("x")
        await box.arun("touch /tmp/elsewhere /srv/t/end")
        assert await until(changes, ("created", "/srv/t/end")) == [("created", "/srv/t/end")]


async def test_changes_that_nobody_takes_end_in_an_overflow_and_the_watch_goes_on(box: Sandbox) -> None:
    async with box.watch("/srv") as changes:
        await box.arun("cd /srv; i=0; while [ $i -lt 20000 ]; do : >f$i; i=$((i+1)); done")
        assert len(await until(changes, ("overflow", "/srv"))) < 20_000
        async with asyncio.timeout(20):
            for i in range(100):  # a busy node may still be telling of the flood
                await box.arun(f"touch /srv/end{i}")
                async for event in changes:
                    if event.kind == "overflow" or event.path == f"/srv/end{i}":
                        break
                if event.path == f"/srv/end{i}":
                    break


async def test_two_watches_of_one_folder_do_not_disturb_one_another(box: Sandbox) -> None:
    async with box.watch("/srv") as first:
        async with box.watch("/srv", recursive=True) as second:
            await box.arun("touch /srv/one")
            assert await until(first, ("created", "/srv/one")) and await until(second, ("created", "/srv/one"))
        await box.arun("touch /srv/two")
        assert ("created", "/srv/two") in await until(first, ("created", "/srv/two"))


async def test_it_ends_with_the_folder_and_with_the_box(box: Sandbox) -> None:
    await box.mkdir("/srv/gone")
    async with box.watch("/srv/gone") as changes:
        await box.arun("rmdir /srv/gone")
        assert [(event.kind, event.path) async for event in changes] == [("deleted", "/srv/gone")]
    async with box.watch("/srv") as changes:
        await box.stop()
        async with asyncio.timeout(20):
            assert [event async for event in changes] == []


async def test_a_node_has_one_inotify_instance_for_all_and_none_without_a_watch(box: Sandbox, node: rpc.Client) -> None:
    pid = (await node.call("node.info", wire.Empty(), type=wire.NodeInfo)).pid

    def instances() -> int:
        found = 0
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                found += str(fd.readlink()) == "anon_inode:inotify"
        return found

    watches = [box.watch(path) for path in ("/srv", "/tmp", "/etc")]
    for watch in watches:
        await watch.__aenter__()
    assert instances() == 1
    for watch in watches:
        await watch.aclose()
    async with asyncio.timeout(5):
        while instances():  # the node hears of the end a moment later
            await asyncio.sleep(0.01)


async def test_what_cannot_be_watched_says_why(box: Sandbox) -> None:
    for path, said in (("/nothing", "no such file"), ("/proc", "proc"), ("srv", "absolute")):
        with pytest.raises(FileError, match=said):
            await anext(box.watch(path))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_box_that_dies_while_it_makes_folders_ends_no_other_watch(host: SandboxHost) -> None:
    dying, other = await Lab(host).up(), await Lab(host).up()
    watcher = Watcher()
    first, second = watcher.watch(dying.box.init, "/srv", True), watcher.watch(other.box.init, "/srv", True)
    assert [await anext(first), await anext(second)] == [[], []]
    with watcher._lock:  # what the kernel tells of waits until the box is dead
        await dying.run("mkdir /srv/a /srv/b")
        await dying.call("sandbox.delete", wire.Ref(id=dying.id))
    await other.run("mkdir /srv/c; touch /srv/c/d")
    async with asyncio.timeout(20):
        told = [event.path for event in await anext(second)]
        while "/srv/c/d" not in told:
            told += [event.path for event in await anext(second)]
    await first.aclose()
    await second.aclose()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_should_watching_fail_all_watches_end_and_the_next_begins_anew(
    shared: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher()
    with monkeypatch.context() as patch:
        patch.setattr(watcher, "_batch", lambda _: 1 / 0)
        first = watcher.watch(shared.box.init, "/srv", False)
        await anext(first)
        await shared.run("mkdir /srv/one")
        async with asyncio.timeout(20):
            assert [batch async for batch in first] == []
    second = watcher.watch(shared.box.init, "/srv", False)
    await anext(second)
    await shared.run("mkdir /srv/two")
    async with asyncio.timeout(20):
        assert [event.path for event in await anext(second)] == ["/srv/two"]
    await second.aclose()
    assert watcher._fd == watcher._stop == -1


async def test_a_wake_for_what_was_taken_already_is_no_end() -> None:
    """An event may be told between another's wake and its taking: its own wake then finds nothing."""
    watch = _Watch(1, "/srv", None, False)
    watch.tell("created", "/srv/a")
    await asyncio.sleep(0)
    watch.tell("created", "/srv/b")
    assert len(await watch.take()) == 2
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch.take(), 0.05)
    watch.end()
    assert await watch.take() == []
