"""A cluster of two nodes on one machine: the same Sandbox, wherever the box is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rockroll import Sandbox, SandboxConfig
from rockroll.errors import NoRoom, SandboxNotFound
from rockroll.model_service.relay import OnDelta, Relay
from rockroll.model_service.wire import ChatReply, ChatRequest
from rockroll.rpc.trunk import address_through
from rockroll.sandbox import where
from rockroll.sandbox.client import list_sandboxes
from rockroll.sandbox.cluster.client import HubNode
from rockroll.sandbox.node_client import close_node, connect_to
from rockroll.sandbox.wire import SnapshotRef
from tests.placement.conftest import Two

SMALL = SandboxConfig(memory="64m", pids=64)


async def test_boxes_spread_over_the_nodes_and_are_used_as_any(hub: HubNode) -> None:
    async with Sandbox(SMALL) as one, Sandbox(SMALL) as other:
        assert {one.info.node, other.info.node} == {"left", "right"}
        for box in (one, other):
            assert (await box.arun("echo $((6 * 7)); x=1")).stdout == b"42\n"
            assert (await box.arun("echo $x")).stdout == b"1\n"
            await box.write_file("/data/a", os.urandom(300_000))
            assert len(await box.read_file("/data/a")) == 300_000
        assert {info.id: info.node for info in await list_sandboxes()} == {
            box.id: box.info.node for box in (one, other)
        }
    assert await list_sandboxes() == []


async def test_a_box_is_found_by_id_prefix_and_name_and_its_end_is_told(hub: HubNode) -> None:
    async with Sandbox(SandboxConfig(name="found-here", memory="64m", pids=64)) as box:
        for word in (box.id, box.id[:8], "found-here"):
            found = await Sandbox.attach(word)
            assert found.id == box.id
            assert (await found.execute(["true"])).exit_code == 0
    with pytest.raises(SandboxNotFound, match="deleted"):
        await Sandbox.attach(box.id)


async def test_what_a_client_owns_goes_when_it_closes_and_what_is_detached_stays(hub: HubNode) -> None:
    kept = await Sandbox(SMALL, owner="detached").start()
    await Sandbox(SMALL).start()
    await close_node()
    client = await connect_to(where.hub())
    assert isinstance(client, HubNode)
    async with asyncio.timeout(20):
        while [info.id for info in await list_sandboxes()] != [kept.id]:
            await asyncio.sleep(0.1)
    await (await Sandbox.attach(kept.id)).delete()


async def test_commands_streams_and_ports_go_through_the_hub(hub: HubNode, tmp_path: Path) -> None:
    async with Sandbox(SMALL) as box:
        command = await box.start_command("for i in 1 2 3; do echo $i; done", command_id="c")
        assert b"".join([chunk.data async for chunk in command.output()]) == b"1\n2\n3\n"
        assert (await command.wait()).exit_code == 0
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "file").write_bytes(os.urandom(5_000_000))
        await box.upload(tmp_path / "tree", "/data/tree")
        await box.download("/data/tree", tmp_path / "back")
        assert (tmp_path / "back" / "file").read_bytes() == (tmp_path / "tree" / "file").read_bytes()
        server = "import socketserver as s; s.TCPServer(('127.0.0.1', 8000), s.StreamRequestHandler).serve_forever()"
        code = server.replace(
            "s.StreamRequestHandler",
            "type('H', (s.StreamRequestHandler,), "
            "{'handle': lambda self: self.wfile.write(self.rfile.readline().upper())})",
        )
        await box.start_command(["python3", "-c", code])
        async with box.forward(8000) as place, asyncio.timeout(20):
            while True:
                reader, writer = await asyncio.open_connection(place.host, place.port)
                with contextlib.suppress(ConnectionError):  # the server may not listen yet
                    writer.write(b"hello\n")
                    line = await reader.readline()
                    if line:
                        break
                writer.close()
                await asyncio.sleep(0.1)
            writer.close()
            assert line == b"HELLO\n"


async def test_a_snapshot_is_used_where_it_is(hub: HubNode) -> None:
    async with Sandbox(SMALL) as box:
        await box.write_file("/data/kept", b"1")
        await box.snapshot("kept-here")
        for _ in range(2):
            async with Sandbox(SandboxConfig(snapshot="kept-here", memory="64m", pids=64)) as other:
                assert other.info.node == box.info.node
                assert await other.read_file("/data/kept") == b"1"
        async with await box.fork() as twin:
            assert await twin.read_file("/data/kept") == b"1"
    await hub.call("snapshot.delete", SnapshotRef(name="kept-here"))


async def test_a_draining_node_takes_no_box_and_keeps_those_it_has(hub: HubNode) -> None:
    await hub.drain("left")
    try:
        for _ in range(3):
            async with Sandbox(SMALL) as box:
                assert box.info.node == "right"
        await hub.drain("right")
        with pytest.raises(NoRoom, match="left is draining; right is draining"):
            await Sandbox(SMALL).start()
    finally:
        await hub.drain("left", on=False)
        await hub.drain("right", on=False)
    async with Sandbox(SMALL):
        pass


async def test_a_model_call_goes_from_the_box_through_the_hub_to_a_relay_that_listens_nowhere(
    hub: HubNode, two: Two
) -> None:
    async def answer(request: ChatRequest, _on_delta: OnDelta | None = None) -> ChatReply:
        said = f"{request.token}: {request.messages[-1].content}"
        return ChatReply(text=said, finish_reason="stop", prompt_tokens=3, completion_tokens=4)

    found = where.hub()
    assert found is not None
    ask = """
import json, os, urllib.request as u
body = {"model": "policy", "messages": [{"role": "user", "content": "hello"}]}
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
asked = u.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
print(json.load(u.urlopen(asked, timeout=60))["choices"][0]["message"]["content"])
"""
    address = address_through(found.address, found.server_key)
    async with Relay(address, answer, ["policy"]), Sandbox(SMALL) as one, Sandbox(SMALL) as other:
        for box in (one, other):
            await box.ask("model.route", {"id": box.id, "upstream": address, "token": f"episode-{box.info.node}"})
            seen = await box.execute(["python3", "-c", ask])
            assert seen.stdout.decode() == f"episode-{box.info.node}: hello\n", seen.output


def rockroll(*argv: str, code: int = 0) -> str:
    env = {name: value for name, value in os.environ.items() if name != "ROCKROLL_CLUSTER"}
    done = subprocess.run([sys.executable, "-m", "rockroll", *argv], env=env, capture_output=True, text=True)
    assert done.returncode == code, (argv, done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


def test_the_command_line_uses_a_cluster_by_its_file(two: Two) -> None:
    file = str(two[0].file)
    made = json.loads(rockroll("sandbox", "--cluster", file, "up", "--count", "2", "--memory", "64m", "--json"))
    assert sorted(info["node"] for info in made) == ["left", "right"]
    nodes = json.loads(rockroll("cluster", "--cluster", file, "ls", "--json"))
    assert [(node["name"], node["state"], node["boxes"]) for node in nodes] == [("left", "up", 1), ("right", "up", 1)]
    assert rockroll("sandbox", "--cluster", file, "exec", made[1]["id"], "--", "echo", "hello") == "hello\n"
    rockroll("sandbox", "--cluster", file, "down", *(info["id"] for info in made))
    assert json.loads(rockroll("sandbox", "--cluster", file, "ls", "--json")) == []


def test_what_cannot_be_is_said_in_a_sentence(two: Two, tmp_path: Path) -> None:
    hub, hosts = two
    said = rockroll("sandbox", "--cluster", str(hub.file), "--base-url", "http://x", "ls", code=2)
    assert "--base-url and --cluster name 2 places" in said
    assert "which cluster: say --cluster FILE" in rockroll("cluster", "ls", code=2)
    assert "`rockroll hub` writes one" in rockroll("sandbox", "--cluster", str(tmp_path / "none"), "ls", code=2)
    open_to_all = tmp_path / "open.json"
    open_to_all.write_bytes(hub.file.read_bytes())
    open_to_all.chmod(0o644)
    assert "chmod 600 it" in rockroll("sandbox", "--cluster", str(open_to_all), "ls", code=2)
    taken = hosts["left"].run(sys.executable, "-m", "rockroll", "node", "--hub", str(hub.file), "--name", "right")
    assert taken.returncode == 2
    assert "a node called right is in this cluster" in taken.stderr
    hosts["left"].join(hub.file, "left")
