"""What `Sandbox` promises, on a real node with real Podman."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rockroll import Sandbox, SandboxConfig, home, rpc
from rockroll.errors import (
    FileError,
    ImageMissing,
    PeerLost,
    SandboxError,
    SandboxLost,
    SandboxNotFound,
    UsageError,
)
from rockroll.model_service.relay import Relay
from rockroll.model_service.wire import ChatReply, ChatRequest
from rockroll.sandbox import node_client
from rockroll.sandbox.client import list_sandboxes
from rockroll.sandbox.client_files import PART
from rockroll.sandbox.wire import Empty, NodeInfo, SandboxInfo
from tests.conftest import IS_ROOT

SMALL = SandboxConfig(memory="128m", pids=64)
MODELS = """
import os, urllib.request, urllib.error
try:
    print(urllib.request.urlopen(os.environ["OPENAI_BASE_URL"] + "/models", timeout=5).read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""
CHAT = """
import json, os, urllib.request
body = {"model": "m", "messages": [{"role": "user", "content": "6 * 7"}]}
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.dumps(body).encode(),
    {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
)
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
"""

pytestmark = pytest.mark.usefixtures("node")


async def listed(node: rpc.Client) -> list[str]:
    return [info.id for info in await node.call("sandbox.list", Empty(), type=list[SandboxInfo])]


# ---- life ----------------------------------------------------------------------------------------------------------


async def replied(boxes: int) -> None:
    """Returns when so many run and nothing of the node's answer for the last one has been read: nobody reads it before
    the next await."""
    while _stand_still(0.01) < boxes:
        await asyncio.sleep(0)
    _stand_still(0.1)


def _stand_still(seconds: float) -> int:
    """How many boxes run after it."""
    time.sleep(seconds)
    with sqlite3.connect(f"file:{home.node_dir() / 'registry.sqlite'}?mode=ro", uri=True) as registry:
        return registry.execute("SELECT count(*) FROM sandboxes WHERE state = 'running'").fetchone()[0]


async def test_a_start_that_is_cancelled_with_its_reply_on_the_way_leaves_no_box(node: rpc.Client) -> None:
    starting = asyncio.ensure_future(Sandbox(SMALL, owner="detached").start())
    await replied(1)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await listed(node) == []


async def test_a_fork_that_is_cancelled_leaves_no_box(node: rpc.Client) -> None:
    async with Sandbox(SMALL) as sandbox:
        forking = asyncio.ensure_future(sandbox.fork())
        await replied(2)
        forking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forking
        assert await listed(node) == [sandbox.id]


@pytest.mark.parametrize("name", [None, "mine"])
async def test_a_box_whose_maker_was_not_told_of_it_before_its_node_died_is_not_left_to_the_next_node(
    node: rpc.Client, end_process: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    pid = (await node.call("node.info", Empty(), type=NodeInfo)).pid
    call = rpc.Client.call

    async def unheard(self: rpc.Client, method: str, body: Any = None, **more: Any) -> Any:
        done = await call(self, method, body, **more)
        if method == "sandbox.create":
            monkeypatch.setattr(rpc.Client, "call", call)
            await asyncio.to_thread(end_process, pid, signal.SIGKILL)
            raise PeerLost("the node died with the reply in its hands")
        return done

    monkeypatch.setattr(rpc.Client, "call", unheard)
    with pytest.raises(SandboxLost, match="the node died while"):
        await Sandbox(dataclasses.replace(SMALL, name=name)).start()
    assert await list_sandboxes() == []


async def test_a_box_lives_as_long_as_its_block(node: rpc.Client) -> None:
    async with Sandbox(SMALL) as sandbox:
        assert sandbox.info.state == "running"
        assert sandbox.id in await listed(node)
    assert sandbox.id not in await listed(node)
    with pytest.raises(SandboxNotFound):
        await sandbox.arun("true")


@pytest.mark.skipif(
    not IS_ROOT and not shutil.which("slirp4netns"), reason="an ordinary user's open network needs slirp4netns"
)
async def test_a_box_with_an_open_network_has_the_models_endpoint_too() -> None:
    async with Sandbox(SandboxConfig(memory="128m", pids=64, network="open")) as sandbox:
        assert "no_upstream" in (await sandbox.execute(["python3", "-c", MODELS])).output


async def test_a_box_that_was_not_started_says_how_to_start_it() -> None:
    with pytest.raises(SandboxError, match="start"):
        await Sandbox(SMALL).arun("true")


async def test_a_missing_image_is_named() -> None:
    with pytest.raises(ImageMissing, match="localhost/nothing-here:1"):
        await Sandbox(SandboxConfig(image="localhost/nothing-here:1")).start()


async def test_stop_keeps_files_and_start_goes_on_with_them() -> None:
    async with Sandbox(SMALL) as sandbox:
        await sandbox.write_file("/srv/kept", b"here")
        await sandbox.stop()
        assert sandbox.info.state == "stopped"
        await sandbox.start()
        assert sandbox.info.state == "running"
        assert await sandbox.read_file("/srv/kept") == b"here"
        assert (await sandbox.arun("cat /srv/kept")).stdout == b"here"


async def test_attach_finds_a_box_by_name_and_by_the_start_of_its_id_and_does_not_delete_it(node: rpc.Client) -> None:
    async with Sandbox(SandboxConfig(memory="128m", name="found")) as sandbox:
        for reference in ("found", sandbox.id[:6], sandbox.id):
            async with await Sandbox.attach(reference) as same:
                assert same.id == sandbox.id
        assert sandbox.id in await listed(node)
    with pytest.raises(SandboxNotFound, match="found"):
        await Sandbox.attach("found")


async def test_a_box_is_gone_when_the_process_that_made_it_is_killed(node: rpc.Client) -> None:
    script = (
        "import asyncio; from rockroll import Sandbox\n"
        "async def main():\n"
        "    print((await Sandbox().start()).id, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert owner.stdout
    made = (await owner.stdout.readline()).decode().strip()
    sandbox = await Sandbox.attach(made)
    owner.kill()
    await owner.wait()
    async with asyncio.timeout(10):
        async for _ in sandbox.logs(follow=True):  # ends with the box
            pass
    assert made not in await listed(node)


async def test_a_detached_box_outlives_the_connection_that_made_it() -> None:
    sandbox = await Sandbox(SMALL, owner="detached").start()
    await sandbox.arun("x=41")
    await node_client.close_node()
    again = await Sandbox.attach(sandbox.id)
    assert (await again.arun("echo $((x + 1))")).stdout == b"42\n"
    await again.delete()


# ---- commands ------------------------------------------------------------------------------------------------------


async def test_a_session_keeps_its_state_and_streams_stay_apart() -> None:
    async with Sandbox(SMALL) as sandbox:
        await sandbox.arun("cd /srv; x=7; f() { echo f:$1; }")
        seen = await sandbox.arun("pwd; f $x; echo oops >&2; (exit 3)")
        assert (seen.stdout, seen.stderr, seen.exit_code, seen.outcome) == (b"/srv\nf:7\n", b"oops\n", 3, "ok")
        assert seen.output == "/srv\nf:7\noops\n"


async def test_sessions_are_created_with_their_folder_and_variables_and_closed() -> None:
    async with Sandbox(SMALL) as sandbox:
        await sandbox.create_session("build", env={"STAGE": "one"}, cwd="/usr")
        assert (await sandbox.arun("echo $STAGE $PWD", session="build")).stdout == b"one /usr\n"
        await sandbox.close_session("build")
        assert (await sandbox.arun("echo [$STAGE]", session="build")).stdout == b"[]\n"


async def test_a_timeout_kills_the_command_and_leaves_the_session_usable() -> None:
    async with Sandbox(SMALL) as sandbox:
        await sandbox.arun("x=kept")
        seen = await sandbox.arun("sleep 1000 & sleep 1000", timeout=0.3)
        assert (seen.outcome, seen.exit_code) == ("timeout", None)
        assert (await sandbox.arun("echo $x; pgrep -r D,R,S,T -c sleep")).stdout == b"kept\n0\n"


async def test_a_cancelled_call_kills_its_command() -> None:
    async with Sandbox(SMALL) as sandbox:
        running = asyncio.ensure_future(sandbox.arun("sleep 1000"))
        await asyncio.sleep(0.3)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with asyncio.timeout(5):
            assert (await sandbox.arun("pgrep -r D,R,S,T -c sleep")).stdout == b"0\n"


async def test_execute_runs_one_program_with_its_own_exit_code_input_and_variables() -> None:
    async with Sandbox(SMALL) as sandbox:
        seen = await sandbox.execute(
            ["sh", "-c", "cat; echo $A; pwd; exit 5"], stdin=b"in\0\xff", env={"A": "b"}, cwd="/srv"
        )
        assert (seen.stdout, seen.exit_code, seen.outcome) == (b"in\0\xffb\n/srv\n", 5, "ok")
        assert (await sandbox.execute(["sleep", "100"], timeout=0.2)).outcome == "timeout"
        with pytest.raises(UsageError, match="list"):
            await sandbox.execute("ls /")


async def test_output_over_the_limit_is_counted() -> None:
    async with Sandbox(SMALL) as sandbox:
        seen = await sandbox.arun("head -c 5000 /dev/zero", max_output=1000)
        assert (len(seen.stdout), seen.truncated_bytes) == (1000, 4000)


async def test_the_log_has_what_commands_printed() -> None:
    async with Sandbox(SMALL) as sandbox:
        await sandbox.arun("echo from the session")
        await sandbox.execute(["echo", "from a program"])
        text = b"".join([part async for part in sandbox.logs()])
        assert b"from the session\n" in text
        assert b"from a program\n" in text


async def test_stats_count_what_the_box_uses() -> None:
    async with Sandbox(SMALL) as sandbox:
        await sandbox.arun("sleep 100 & i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done")
        seen = await sandbox.stats()
        assert seen.pids >= 2
        assert seen.cpu_s > 0
        assert seen.memory_bytes > 0


STARTER = """
import asyncio, sys
from rockroll import Sandbox
async def main():
    sandbox = await Sandbox.attach(sys.argv[1])
    command = await sandbox.start_command("echo one; sleep 0.7; echo two; (exit 9)", command_id="orphan")
    async for chunk in command.output():
        print(chunk.data, flush=True)
asyncio.run(main())
"""


async def test_a_command_whose_client_is_killed_goes_on_for_the_next_client() -> None:
    sandbox = Sandbox(SMALL, owner="detached")
    await sandbox.start()
    try:
        argv = [sys.executable, "-c", STARTER, sandbox.id]
        client = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        assert client.stdout and await client.stdout.readline() == b"b'one\\n'\n"
        client.kill()
        await client.wait()
        command = sandbox.command("orphan")
        assert (await command.info()).state == "running"
        assert b"".join([chunk.data async for chunk in command.output(4)]) == b"two\n"
        assert (await command.wait()).exit_code == 9
        assert (await sandbox.arun("echo one; sleep 0.7; echo two; (exit 9)", command_id="orphan")).exit_code == 9
    finally:
        await sandbox.delete()


# ---- files ---------------------------------------------------------------------------------------------------------


async def test_files_carry_exact_bytes_in_parts_and_at_the_end_of_others() -> None:
    data = os.urandom(1 << 16) * ((PART + (1 << 20)) >> 16)
    async with Sandbox(SandboxConfig(memory="256m")) as sandbox:
        await sandbox.write_file("/data/deep/a.bin", data)
        assert await sandbox.read_file("/data/deep/a.bin") == data
        assert await sandbox.read_file("/data/deep/a.bin", offset=PART - 3, limit=6) == data[PART - 3 : PART + 3]
        await sandbox.write_file("/data/t", "one\n", mode=0o600)
        await sandbox.write_file("/data/t", "two\n", append=True)
        await sandbox.write_file("/data/empty", b"")
        assert await sandbox.read_file("/data/empty") == b""
        assert (await sandbox.arun("stat -c %a /data/t; cat /data/t")).stdout == b"600\none\ntwo\n"


async def test_a_missing_file_and_a_folder_in_its_place_are_errors_that_name_the_path() -> None:
    async with Sandbox(SMALL) as sandbox:
        for path in ("/nothing/here", "/etc"):
            with pytest.raises(FileError, match=path):
                await sandbox.read_file(path)
        with pytest.raises(FileError, match="no-such-file"):
            await sandbox.upload("/tmp/no-such-file", "/srv/x")


async def test_a_folder_goes_up_and_comes_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "bin/run").write_bytes(b"#!/bin/sh\necho it runs\n")
    (source / "bin/run").chmod(0o755)
    (source / "ünï cödé -n").write_bytes(b"\0\xff")
    (source / "link").symlink_to("bin/run")
    async with Sandbox(SMALL) as sandbox:
        await sandbox.upload(source, "/srv/copy")
        assert (await sandbox.arun("/srv/copy/link; ls /srv/copy/empty")).stdout == b"it runs\n"
        copied = await sandbox.download("/srv/copy", tmp_path / "back")
        await sandbox.download("/srv/copy/bin/run", tmp_path / "one")
    assert copied.left_out == []
    assert (tmp_path / "back/link").readlink() == Path("bin/run")
    assert (tmp_path / "back/empty").is_dir()
    assert (tmp_path / "back/ünï cödé -n").read_bytes() == b"\0\xff"
    assert os.access(tmp_path / "back/bin/run", os.X_OK)
    assert (tmp_path / "one").read_bytes() == (source / "bin/run").read_bytes()


# ---- the model endpoint --------------------------------------------------------------------------------------------


async def test_model_calls_answer_503_in_openais_shape_while_no_model_is_routed() -> None:
    async with Sandbox(SMALL) as sandbox:
        seen = await sandbox.execute(["python3", "-c", MODELS])
        code, _, body = seen.stdout.decode().partition(" ")
        assert code == "503", seen.output
        assert json.loads(body)["error"]["code"] == "no_upstream"


async def test_model_calls_reach_the_relay_that_the_box_is_routed_to(node: rpc.Client, tmp_path: Path) -> None:
    asked: list[ChatRequest] = []

    async def answer(request: ChatRequest, on_delta: object) -> ChatReply:
        asked.append(request)
        return ChatReply(text="42", finish_reason="stop", prompt_tokens=5, completion_tokens=1)

    async with Relay(f"ipc://{tmp_path}/relay", answer, ["tiny"]) as relay, Sandbox(SMALL) as sandbox:
        await node.call("model.route", {"id": sandbox.id, "upstream": relay.address, "token": "episode-1"})
        listed = json.loads((await sandbox.execute(["python3", "-c", MODELS])).stdout)
        assert [card["id"] for card in listed["data"]] == ["tiny"]
        seen = await sandbox.arun(f"python3 -c '{CHAT}'")
        assert seen.stdout == b"42\n", seen.output
        await node.call("model.route", {"id": sandbox.id, "upstream": None, "token": ""})
        assert (await sandbox.execute(["python3", "-c", MODELS])).stdout.startswith(b"503")
    assert [(each.token, each.sandbox, each.messages[0].content) for each in asked] == [
        ("episode-1", sandbox.id, "6 * 7")
    ]


async def test_the_endpoint_is_back_before_the_first_command_after_a_restart() -> None:
    async with Sandbox(SMALL) as sandbox:
        for _ in range(3):
            await sandbox.stop()
            await sandbox.start()
            seen = await sandbox.execute(["python3", "-c", MODELS])
            assert seen.stdout.startswith(b"503"), seen.output


async def test_nothing_but_the_model_is_reachable() -> None:
    async with Sandbox(SMALL) as sandbox:
        seen = await sandbox.execute(["sh", "-c", "ls /sys/class/net; cat /proc/net/route"])
        assert seen.stdout.split() == [b"lo"] or seen.stdout.startswith(b"lo\nIface"), seen.output
        script = "import socket; socket.create_connection(('1.1.1.1', 53), timeout=2)"
        assert b"Network is unreachable" in (await sandbox.execute(["python3", "-c", script])).stderr


# ---- recycling -----------------------------------------------------------------------------------------------------


async def test_recycle_leaves_no_file_process_or_session_behind() -> None:
    async with Sandbox(SMALL) as sandbox:
        await sandbox.arun("x=1; mkdir /srv/new; touch /srv/new/file /etc/added; (setsid sleep 100 &)")
        recycled = await sandbox.recycle()
        assert recycled.ok, recycled.reason
        seen = await sandbox.arun("echo [$x]; ls /srv /etc/added; pgrep -r D,R,S,T -c sleep")
        assert seen.stdout == b"[]\n/srv:\n0\n", seen.output


async def test_a_box_whose_image_was_changed_is_not_recycled_but_deleted(node: rpc.Client) -> None:
    async with Sandbox(SMALL) as sandbox:
        await sandbox.arun("rm /etc/issue")
        recycled = await sandbox.recycle()
        assert not recycled.ok
        assert "/etc/issue" in recycled.reason
        assert sandbox.id not in await listed(node)


async def test_recycling_is_faster_than_a_new_box() -> None:
    async with Sandbox(SMALL) as sandbox:
        began = time.perf_counter()
        await sandbox.recycle()
        recycled = time.perf_counter() - began
        began = time.perf_counter()
        async with Sandbox(SMALL):
            started = time.perf_counter() - began
    assert recycled < started
