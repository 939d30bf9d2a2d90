"""From inside a real sandbox: what a program there does to its calls, and what is left when it is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rockroll import rpc
from rockroll.model_service.relay import Relay
from rockroll.sandbox.client import Sandbox

ASK = r"""
import json, os, sys, urllib.request
body = json.dumps({"messages": [{"role": "user", "content": sys.argv[1]}]}).encode()
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body)
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
"""


async def route(node: rpc.Client, sandbox: Sandbox, upstream: str | None, token: str) -> None:
    await node.call("model.route", {"id": sandbox.id, "upstream": upstream, "token": token})


async def test_a_program_that_is_killed_in_the_sandbox_ends_its_call(node: rpc.Client, tmp_path: Path, held) -> None:
    async with Sandbox() as sandbox, Relay(f"ipc://{tmp_path}/relay", held) as relay:
        await route(node, sandbox, relay.address, "one")
        asking = asyncio.create_task(sandbox.execute(["python3", "-I", "-c", ASK, "hello"]))
        await held.until(lambda: len(held.requests) == 1)
        assert held.requests[0].sandbox == sandbox.id and held.requests[0].token == "one"
        await sandbox.execute(["pkill", "-KILL", "-x", "python3"])
        await held.until(lambda: held.cancelled == held.requests)
        assert (await asking).exit_code != 0


async def test_a_program_that_outlives_its_episode_has_no_call_in_the_next(
    node: rpc.Client, tmp_path: Path, held
) -> None:
    async with Sandbox() as sandbox, Relay(f"ipc://{tmp_path}/relay", held) as relay:
        await sandbox.write_file("/ask.py", ASK.encode())
        await route(node, sandbox, relay.address, "one")
        asking = asyncio.create_task(sandbox.execute(["python3", "/ask.py", "from one"]))
        await held.until(lambda: len(held.requests) == 1)
        await route(node, sandbox, relay.address, "two")
        await held.until(lambda: len(held.cancelled) == 1)
        late = await asking
        assert late.exit_code == 1 and b"503" in late.stderr
        held.go.set()
        assert (await sandbox.execute(["python3", "/ask.py", "from two"])).stdout == b"two: from two\n"
        assert [request.messages[0].content for request in held.requests] == ["from one", "from two"]


async def test_a_sandbox_that_was_restored_has_its_model_again(node: rpc.Client, tmp_path: Path, held) -> None:
    held.go.set()
    async with Sandbox() as sandbox, Relay(f"ipc://{tmp_path}/relay", held) as relay:
        await route(node, sandbox, relay.address, "one")
        await sandbox.stop()
        await sandbox.restore()
        assert (await sandbox.execute(["python3", "-I", "-c", ASK, "again"])).stdout == b"one: again\n"
