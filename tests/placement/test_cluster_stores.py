"""Nodes that do not share a store: snapshots and images go from one to the other, once, and arrive as they were."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rockroll import Sandbox, SandboxConfig
from rockroll.errors import ImageMissing, SnapshotNotFound, UsageError
from rockroll.sandbox.client import delete_snapshot, snapshots
from rockroll.sandbox.cluster.client import HubNode
from rockroll.sandbox.config import DEFAULT_IMAGE
from rockroll.sandbox.node_client import close_node
from tests.placement.cluster import Host, cluster
from tests.placement.conftest import Two

# A node with a store of its own tries the runtimes anew, and 200 MB go to it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROCKROLL = [sys.executable, "-m", "rockroll"]
SMALL = SandboxConfig(memory="64m", pids=64)
FILES = r"""
mkdir -p /srv/deep/er /srv/mode; echo kept >/srv/deep/er/file; ln /srv/deep/er/file /srv/hard; ln -s deep/er /srv/link
chmod 4750 /srv/hard; chown 1234:4321 /srv/mode; touch -d 2001-02-03T04:05:06.789 /srv/mode; mkfifo /srv/fifo
truncate -s 50M /srv/holes; echo end >>/srv/holes; echo $RANDOM >/srv/random
rm /usr/bin/curl; rm -r /usr/share/doc; mkdir /usr/share/doc; touch /usr/share/doc/new
python3 -c 'import os; os.setxattr("/srv/mode", "user.mark", b"yes")'
"""
LOOK = r"""
find /srv -mindepth 1 -printf '%p %m %U %G %s %T@ %n %l %b\n' | sort
cat /srv/random /srv/deep/er/file; ls -A /usr/share/doc; ls /usr/bin/curl 2>&1; tail -c 4 /srv/holes
python3 -c 'import os; print(os.getxattr("/srv/mode", "user.mark"))'
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, sandbox_image: str) -> Iterator[Two]:
    """`bare` begins without any image."""
    with cluster(tmp_path_factory.mktemp("stores"), ["full", "bare"], own_stores=["bare"]) as found:
        yield found


@pytest.fixture
async def hub(hub: HubNode) -> AsyncIterator[HubNode]:
    yield hub
    for name in ("full", "bare"):
        await hub.drain(name, on=False)


def log(host: Host) -> str:
    return (host.path / "node" / "node.log").read_text()


async def test_an_image_comes_from_the_node_that_has_it_once_however_many_wait(hub: HubNode, two: Two) -> None:
    await hub.drain("full")
    boxes = [Sandbox(SMALL) for _ in range(4)]
    await asyncio.gather(*(box.start() for box in boxes))
    try:
        assert {box.info.node for box in boxes} == {"bare"}
        assert (await boxes[0].arun("echo here")).stdout == b"here\n"
    finally:
        await asyncio.gather(*(box.delete() for box in boxes))
    assert log(two[1]["bare"]).count(f"image {DEFAULT_IMAGE} (") == 1


async def test_an_image_that_only_the_callers_host_has_is_given_to_a_node(
    tmp_path: Path, sandbox_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster(tmp_path / "given", ["alone"], own_stores=["alone"]) as (hub, hosts):
        monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path / "caller"))
        monkeypatch.setenv("ROCKROLL_CLUSTER", str(hub.file))
        boxes = [Sandbox(SMALL) for _ in range(3)]
        await asyncio.gather(*(box.start() for box in boxes))
        assert (await boxes[0].arun("echo here")).stdout == b"here\n"
        with pytest.raises(ImageMissing, match="localhost/nowhere:1"):
            await Sandbox(SandboxConfig(image="localhost/nowhere:1", memory="64m", pids=64)).start()
        await close_node()
        assert log(hosts["alone"]).count("was given by a client") == 1


async def test_what_nobody_has_is_an_error_that_says_so(hub: HubNode) -> None:
    with pytest.raises(ImageMissing, match="no node of the cluster has image localhost/nowhere:1"):
        await Sandbox(SandboxConfig(image="localhost/nowhere:1", memory="64m", pids=64)).start()


async def test_a_snapshot_goes_to_the_node_that_has_room_and_is_there_as_it_was(hub: HubNode) -> None:
    await hub.drain("bare")
    async with Sandbox(SandboxConfig(memory="128m", pids=64)) as box:
        await box.arun(FILES)
        before = (await box.arun(LOOK)).output
        assert "kept" in before and "No such file" in before
        taken = await box.snapshot("travels")
        await hub.drain("bare", on=False)
        await hub.drain("full")
        config = SandboxConfig(snapshot="travels", memory="64m", pids=64)
        others = [Sandbox(config) for _ in range(2)]
        await asyncio.gather(*(other.start() for other in others))
        for other in others:
            assert other.info.node == "bare"
            assert (await other.arun(LOOK)).output == before
            await other.delete()
        (info,) = await snapshots()
        assert (info.name, info.created, info.nodes) == ("travels", taken.created, ["bare", "full"])
        with pytest.raises(UsageError, match="exists on bare, full"):
            await box.snapshot("travels")
    await delete_snapshot("travels")
    assert await snapshots() == []
    with pytest.raises(SnapshotNotFound):
        await Sandbox(config).start()


async def test_a_fork_of_a_box_on_a_drained_node_is_made_on_another(hub: HubNode) -> None:
    await hub.drain("bare")
    async with Sandbox(SMALL) as box:
        await box.arun("echo mine >/srv/file")
        await hub.drain("bare", on=False)
        await hub.drain("full")
        async with await box.fork() as twin:
            assert (box.info.node, twin.info.node) == ("full", "bare")
            assert await twin.read_file("/srv/file") == b"mine\n"
    assert await snapshots() == []


def test_a_snapshot_is_copied_by_hand_and_the_list_says_where_it_is(two: Two) -> None:
    hub, hosts = two
    at = [*ROCKROLL, "sandbox", "--cluster", str(hub.file)]

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return hosts["full"].run(*at, *argv, COLUMNS="400")

    (line,) = run("up", "--memory", "64m").stdout.split()
    try:
        assert run("snapshot", line, "by-hand").returncode == 0
        first = run("snapshots").stdout.split("\n")[1].split()[-1]
        other = {"full": "bare", "bare": "full"}[first]
        assert run("snapshots", "--copy", "by-hand", "--to", other).stdout == f"by-hand: {', '.join(sorted(hosts))}\n"
        assert run("snapshots").stdout.split("\n")[1].endswith("bare, full")
        refused = run("snapshots", "--copy", "by-hand", "--to", "nowhere")
        assert refused.returncode == 2 and "there are: bare, full" in refused.stderr
        assert run("snapshots", "--copy", "by-hand").returncode == 2
        assert run("snapshots", "--rm", "by-hand").returncode == 0
    finally:
        run("down", line)


def test_outside_of_a_cluster_there_is_nowhere_to_copy_to(tmp_path: Path) -> None:
    alone = Host(tmp_path / "alone")
    done = alone.run(*ROCKROLL, "sandbox", "snapshots", "--copy", "a", "--to", "b", COLUMNS="400")
    assert done.returncode == 2
    assert "--cluster FILE" in done.stderr
    alone.end()
