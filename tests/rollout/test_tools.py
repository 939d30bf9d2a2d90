"""Tools that an environment offers: told to the model in its own way, called, answered; also those of an MCP server."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rockroll import rpc
from rockroll.engine.api import GenerateRequest
from rockroll.env.api import Call
from rockroll.env.mcp_tools import McpTools
from rockroll.errors import EnvError, UsageError
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.rollout.runner import Rollout
from rockroll.rollout.sample import Episode
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.sandbox.on_demand import OnDemand

from . import games
from .engines import Policy, ScriptedEngine
from .families import chat_tokenizer

SERVER = Path(__file__).parent / "mcp_server.py"


async def played(tokenizer: ChatTokenizer, env: str, policy: Policy, **task: Any) -> tuple[Episode, ScriptedEngine]:
    engine = ScriptedEngine(tokenizer, policy, context_length=8192)
    config = TaskConfig(env=env, max_turns=8, **task)
    async with Rollout(RolloutConfig(max_tokens=512), engine, None, config, None, tokenizer) as run:
        (episode,) = await run.evaluate([3], temperature=0.0)
    return episode, engine


# ---- offered by an Env ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "process"])
@pytest.mark.parametrize(
    ("family", "call", "answer"),
    [
        ("qwen2.5", '<tool_call>\n{"name": "look", "arguments": {"word": "owl"}}\n</tool_call>', "<tool_response>"),
        ("llama-3.1", '{"name": "look", "parameters": {"word": "owl"}}', "ipython"),
    ],
)
async def test_a_tool_is_told_called_and_answered_in_the_model_s_own_way(
    family: str, call: str, answer: str, where: str
) -> None:
    def policy(prompt: str, request: GenerateRequest) -> str:
        return "it has feathers" if "feathers" in prompt else call

    games.Tooled.calls.clear()
    episode, engine = await played(chat_tokenizer(family), f"{games.__name__}:Tooled", policy, where=where)
    assert (episode.outcome, episode.reward, episode.turns) == ("ok", 1.0, 2)
    first, second = (engine.tokenizer.decode(request.prompt_ids) for request in engine.requests)
    assert "Looks a word up." in first and answer in second and second.startswith(first[:100])
    (sample,) = episode.samples
    assert sum(sample.mask) == sum(len(each.token_ids) for each in engine.answers), "both answers, in one branch"
    if where == "here":
        assert games.Tooled.calls == [("", Call("look", {"word": "owl"}, '{"word": "owl"}')), ("it has feathers", None)]


async def test_what_is_no_call_is_text_and_two_calls_in_one_answer_are_two_steps() -> None:
    call = '<tool_call>\n{"name": "look", "arguments": {"word": "owl"}}\n</tool_call>'
    games.Tooled.calls.clear()
    await played(chat_tokenizer("qwen2.5"), f"{games.__name__}:Tooled", lambda *_: '<tool_call>{"name"}</tool_call>')
    await played(chat_tokenizer("qwen2.5"), f"{games.__name__}:Tooled", lambda p, _: "x" if "feath" in p else call * 2)
    assert [made and made.name for _, made in games.Tooled.calls] == [None, "look", "look", None]


async def test_a_model_without_tools_and_definitions_that_are_none_are_refused(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(Exception, match="this model's chat template has no tool calls"):
        await played(tokenizer, f"{games.__name__}:Tooled", lambda *_: "x")
    with pytest.raises(EnvError, match=r"info\[\"tools\"\] are .*; got 'look'"):
        await played(chat_tokenizer("qwen2.5"), f"{games.__name__}:WrongTools", lambda *_: "x")


async def test_arithmetic_is_solved_by_calls() -> None:
    def policy(prompt: str, request: GenerateRequest) -> str:
        results = re.findall(r"<tool_response>\s*(-?\d+)", prompt)
        if results:
            return f"It is {results[-1]}."
        a, sign, b = re.findall(r"(\d+) ([-+*]) (\d+)", prompt)[-1]
        name = {"+": "add", "-": "subtract", "*": "multiply"}[sign]
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': {'a': int(a), 'b': int(b)}})}\n</tool_call>"

    episode, _ = await played(chat_tokenizer("qwen2.5"), "rockroll:arithmetic", policy)
    assert (episode.outcome, episode.reward, episode.turns) == ("ok", 1.0, 2)


# ---- of an MCP server ----------------------------------------------------------------------------------------------


def call(name: str, **arguments: Any) -> Call:
    return Call(name, arguments, json.dumps(arguments))


async def test_a_server_on_this_host_is_asked_over_its_stdin_and_gone_at_the_end() -> None:
    tools = await McpTools.open(command=[sys.executable, str(SERVER)])
    assert [each["name"] for each in tools.definitions] == ["look", "die", "refuse"]
    assert tools.definitions[0]["parameters"]["required"] == ["word"]
    assert await tools.call(call("look", word="owl")) == "owl 1 False"
    assert await tools.call(call("refuse", word="owl")) == "error: owl 2 False"
    assert await tools.call(call("fly", word="owl")) == "error: there is no tool fly"
    assert await tools.call(Call("look", None, "{")) == "error: the arguments are no JSON object"
    with pytest.raises(EnvError, match="ended in the middle of die"):
        await tools.call(call("die", word="x"))
    await tools.aclose()


async def test_a_server_in_a_sandbox_has_what_the_sandbox_has(node: rpc.Client) -> None:
    async with OnDemand().lease() as box:
        await box.write_file("/srv/server.py", SERVER.read_bytes())
        await box.write_file("/work/mine", b"")
        tools = await McpTools.open(command=["python3", "/srv/server.py"], sandbox=box)
        assert await tools.call(call("look", word="owl")) == "owl 1 True"
        await tools.aclose()
        assert (await box.execute(["pgrep", "-f", "server.py"])).exit_code == 1, "it was ended"


@pytest.fixture
def http_server() -> Iterator[str]:
    code = (
        "import sys, uvicorn\nfrom mcp.server import MCPServer\nserver = MCPServer('words')\n"
        "@server.tool()\ndef look(word: str) -> str:\n    'Looks a word up.'\n    return word + ' has feathers'\n"
        "uvicorn.run(server.streamable_http_app(), fd=int(sys.argv[1]), log_level='error')\n"
    )
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # who connects before the server is up waits, and is served
        fd = listening.fileno()
        with subprocess.Popen([sys.executable, "-c", code, str(fd)], pass_fds=(fd,)) as process:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
            process.kill()


async def test_a_server_at_an_address_is_asked_over_streamable_http(http_server: str) -> None:
    tools = await McpTools.open(url=http_server)
    assert tools.definitions[0]["name"] == "look"
    assert "owl has feathers" in await tools.call(call("look", word="owl"))
    await tools.aclose()


@pytest.mark.parametrize("how", [{}, {"command": "python3 x"}, {"command": ["a"], "url": "http://x"}])
async def test_a_server_is_reached_in_one_way(how: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="an MCP server is command="):
        await McpTools.open(**how)


async def test_a_server_that_is_none_says_so() -> None:
    with pytest.raises(EnvError, match="the MCP server false could not be used"):
        await McpTools.open(command=["false"])
    with pytest.raises(EnvError, match="could not be used: FileNotFoundError"):
        await McpTools.open(command=["/nowhere/at/all"])
