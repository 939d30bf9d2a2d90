"""From inside a real sandbox: what a program there does to its calls, and what is left when it is gone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import test_utils, web

from rockroll import rpc, use_model
from rockroll.errors import RockrollError, SandboxNotFound
from rockroll.model_service.relay import Relay
from rockroll.sandbox.client import Sandbox

ASK = r"""
import json, os, sys, urllib.request
body = json.dumps({"messages": [{"role": "user", "content": sys.argv[1]}]}).encode()
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body)
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
"""

ASK_ANTHROPIC = r"""
import json, os, sys, urllib.request
body = json.dumps({"max_tokens": 9, "messages": [{"role": "user", "content": sys.argv[1]}]}).encode()
request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", body)
print(json.load(urllib.request.urlopen(request))["content"][0]["text"])
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


class Heard(NamedTuple):
    path: str
    key: str
    body: dict[str, Any]


@asynccontextmanager
async def openai_server() -> AsyncIterator[tuple[str, list[Heard]]]:
    """A server that speaks OpenAI's chats, as any does: its URL, and what it was asked."""
    heard: list[Heard] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        said = json.loads(await request.read())
        heard.append(Heard(request.path, request.headers.get("Authorization", ""), said))
        message = {"role": "assistant", "content": f"you said {said['messages'][-1]['content']}"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response({"id": "1", "object": "chat.completion", "choices": [choice], "usage": {}})

    async with test_utils.RawTestServer(answer) as server:
        yield str(server.make_url("/v1")), heard


def rockroll(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MY_KEY": "from the shell"}
    return subprocess.run(
        [sys.executable, "-m", "rockroll", *arguments], capture_output=True, text=True, timeout=60, env=environment
    )


async def test_a_sandbox_made_by_hand_talks_to_any_server_without_a_network_or_the_key(node: rpc.Client) -> None:
    python = ["python3", "-I", "-c"]
    async with Sandbox() as sandbox, openai_server() as (url, heard):
        await use_model(sandbox, url, key="secret", budget={"calls": 3})
        assert (await sandbox.execute([*python, ASK, "hello"])).stdout == b"you said hello\n"
        claude = await sandbox.execute([*python, ASK_ANTHROPIC, "and you"])
        assert claude.stdout == b"you said and you\n", "a dialect that the server does not speak is asked as a chat"
        assert [(each.path, each.key) for each in heard] == [("/v1/chat/completions", "Bearer secret")] * 2
        assert b"secret" not in (await sandbox.execute(["sh", "-c", "env; cat /proc/*/environ"])).stdout
        assert (await sandbox.execute([*python, ASK, "third"])).exit_code == 0
        over = await sandbox.execute([*python, ASK, "fourth"])
        assert b"429" in over.stderr and len(heard) == 3

        said = await asyncio.to_thread(
            rockroll, "sandbox", "model", sandbox.id, "--upstream", url, "--key-env", "MY_KEY"
        )
        assert (said.returncode, said.stdout) == (0, f"{sandbox.id}: model calls go to {url}\n")
        await sandbox.stop()
        await sandbox.restore()
        assert (await sandbox.execute([*python, ASK, "again"])).stdout == b"you said again\n"
        assert heard[-1].key == "Bearer from the shell"

        await use_model(sandbox.id, None)
        assert b"503" in (await sandbox.execute([*python, ASK, "off"])).stderr
        for wrong, sentence in (
            ({"url": "ftp://x"}, "or to a server at http"),
            ({"url": "http://u:p@x/v1"}, "holds no password"),
            ({"url": url, "speaks": ["klingon"]}, "got klingon"),
            ({"url": url, "budget": {"prompt_tokens": 5}}, "tokens are not counted"),
            ({"url": url, "budget": {"call": 5}}, "budget"),
        ):
            with pytest.raises(RockrollError, match=sentence):
                await use_model(sandbox, **wrong)  # type: ignore[arg-type]
        with pytest.raises(SandboxNotFound):
            await use_model("nobody", url)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--upstream URL, or --off"),
        (["--upstream", "http://x/v1", "--off"], "one of them"),
        (["--off", "--calls", "3"], "leave the other options out"),
        (["--upstream", "http://x/v1", "--key-env", "NOT_SET"], "the environment has no NOT_SET"),
    ],
)
def test_a_wrong_use_of_the_command_is_told_what_is_right(arguments: list[str], sentence: str) -> None:
    said = rockroll("sandbox", "model", "demo", *arguments)
    assert said.returncode == 2 and sentence in said.stderr
