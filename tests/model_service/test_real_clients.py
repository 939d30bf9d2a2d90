"""Clients as their makers ship them, in a box without a network: each asks, runs a command with its own tool, and ends.

The packages are those of scripts/agents, which installs what is missing. How to run each: docs/agents.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rockroll import Sandbox, SandboxConfig
from rockroll.errors import ModelServiceError
from rockroll.model_service.relay import OnDelta, Relay
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta, Message, Tool, ToolCall
from rockroll.sandbox.node_client import close_node, connect_node

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]  # where packages must come first
ROOT = Path(__file__).parents[2]
TASK = "Write down what six times seven is."
ONE, TWO = "echo rock-$((6 * 7)) > one; cat one", "echo roll-$((6 * 7)) > two; cat two"
SHELLS = {"exec_command": "cmd", "Bash": "command", "run_shell_command": "command", "bash": "command"}
"""The tool of each agent that runs a command, and the argument that is the command."""


def call(tool: Tool, id: str, line: str) -> ToolCall:
    """Runs `line`; whatever else the tool's schema requires is given too."""
    plain = {"string": "to see", "boolean": False, "number": 0, "integer": 0, "array": [], "object": {}}
    said = {name: plain[tool.parameters["properties"][name]["type"]] for name in tool.parameters.get("required", [])}
    return ToolCall(id=id, name=tool.name, arguments=json.dumps({**said, SHELLS[tool.name]: line}))


class Scripted:
    """Answers by what the conversation has come to: each turn thinks, says a word and makes its calls, several at once
    where the turn has several lines; after the last turn it says what it was told.

    refusals: so many calls of the conversation are refused first.
    """

    def __init__(self) -> None:
        self.begin([])

    def begin(self, turns: list[list[str]], *, refusals: int = 0) -> None:
        self.turns = turns
        self.refusals = refusals
        self.requests: list[ChatRequest] = []
        self.streamed: list[bool] = []

    @property
    def conversation(self) -> list[ChatRequest]:
        """The requests with tools: an agent may also ask for a title, say."""
        return [request for request in self.requests if any(tool.name in SHELLS for tool in request.tools)]

    @property
    def results(self) -> list[Message]:
        """What the commands gave, as the last request of the conversation says it."""
        return [message for message in self.conversation[-1].messages if message.role == "tool"]

    async def __call__(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatReply:
        self.requests.append(request)
        self.streamed.append(on_delta is not None)
        shell = next((tool for tool in request.tools if tool.name in SHELLS), None)
        if shell and self.refusals:
            self.refusals -= 1
            raise ModelServiceError("back in a moment", status=503, type="server_error", code="upstream_lost")
        done = sum(bool(message.tool_calls) for message in request.messages)
        calls: list[ToolCall] = []
        text = "All done: " + " ".join(m.content for m in request.messages if m.role == "tool")
        if shell and done < len(self.turns):
            text = "Let me look."
            calls = [call(shell, f"call_{done}_{i}", line) for i, line in enumerate(self.turns[done])]
        if on_delta:
            on_delta(Delta(reasoning="hm"))
            on_delta(Delta(text=text))
            for i, each in enumerate(calls):
                on_delta(Delta(tool=i, tool_id=each.id, name=each.name, arguments=each.arguments[:7]))
                on_delta(Delta(tool=i, arguments=each.arguments[7:]))
        return ChatReply(
            text=text,
            reasoning="hm",
            tool_calls=calls,
            finish_reason="tool_calls" if calls else "stop",
            prompt_tokens=100,
            completion_tokens=10,
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model(node_home: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Scripted, str]]:
    """What answers, and where."""
    scripted = Scripted()
    async with Relay(f"ipc://{tmp_path_factory.mktemp('relay')}/r", scripted, ["tiny"], count=lambda _: 100) as relay:
        yield scripted, relay.address
    await close_node()


async def installed(*options: str) -> str:
    """The folder with packages for the Python that boxes have."""
    async with Sandbox() as box:
        said = await box.execute(["python3", "-c", "import sys; print(*sys.version_info[:2], sep='.')"])
    script = await asyncio.create_subprocess_exec(
        ROOT / "scripts/agents", *options, said.output.strip(), stdout=asyncio.subprocess.PIPE
    )
    folder, _ = await script.communicate()
    assert script.returncode == 0
    return folder.decode().strip()


async def box_with(folder: str, upstream: str) -> AsyncIterator[Sandbox]:
    config = SandboxConfig(memory="2g", mounts=(f"{folder}:/opt/agents:ro",))
    async with Sandbox(config) as box:
        await (await connect_node()).call("model.route", {"id": box.id, "upstream": upstream, "token": "episode"})
        yield box


# ---------------------------------------------------------------------------------------------------------------
# SDKs
# ---------------------------------------------------------------------------------------------------------------

OPENAI = r"""
import asyncio, json, subprocess
import openai

schema = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
tools = [{"type": "function", "function": {"name": "bash", "parameters": schema}}]
flat = [{"type": "function", "name": "bash", "parameters": schema}]
task = {"role": "user", "content": "sixes and sevens"}

def run(arguments):
    return subprocess.run(json.loads(arguments)["command"], shell=True, capture_output=True, text=True).stdout

def told(message):
    said = [task, message.model_dump(exclude_none=True)]
    for call in message.tool_calls:
        said.append({"role": "tool", "tool_call_id": call.id, "content": run(call.function.arguments)})
    return said

def whole():
    client = openai.OpenAI()
    said = told(client.chat.completions.create(model="any", messages=[task], tools=tools).choices[0].message)
    return client.chat.completions.create(model="any", messages=said, tools=tools).choices[0].message.content

def streamed():
    client = openai.OpenAI()
    with client.chat.completions.stream(model="any", messages=[task], tools=tools) as stream:
        said = told(stream.get_final_completion().choices[0].message)
    chunks = client.chat.completions.create(model="any", messages=said, tools=tools, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

async def awaited():
    async with openai.AsyncOpenAI() as client:
        async with client.responses.stream(model="any", input=[task], tools=flat) as stream:
            output = (await stream.get_final_response()).output
        said = [task, *output]
        for item in output:
            if item.type == "function_call":
                said.append({"type": "function_call_output", "call_id": item.call_id, "output": run(item.arguments)})
        return (await client.responses.create(model="any", input=said, tools=flat)).output_text

print(json.dumps([whole(), streamed(), asyncio.run(awaited()), [m.id for m in openai.OpenAI().models.list()]]))
"""

ANTHROPIC = r"""
import asyncio, json, subprocess
import anthropic

schema = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
task = {"role": "user", "content": "sixes and sevens"}
fixed = {"model": "any", "max_tokens": 99, "tools": [{"name": "bash", "input_schema": schema}]}

def told(message):
    results = [
        {
            "type": "tool_result",
            "tool_use_id": block.id,
            "content": subprocess.run(block.input["command"], shell=True, capture_output=True, text=True).stdout,
        }
        for block in message.content
        if block.type == "tool_use"
    ]
    return [task, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]

def whole():
    client = anthropic.Anthropic()
    said = told(client.messages.create(messages=[task], **fixed))
    return client.messages.create(messages=said, **fixed).content[0].text

def streamed():
    client = anthropic.Anthropic()
    with client.messages.stream(messages=[task], **fixed) as stream:
        said = told(stream.get_final_message())
    with client.messages.stream(messages=said, **fixed) as stream:
        return "".join(stream.text_stream)

async def awaited():
    async with anthropic.AsyncAnthropic() as client:
        async with client.messages.stream(messages=[task], **fixed) as stream:
            said = told(await stream.get_final_message())
        return (await client.messages.create(messages=said, **fixed)).content[0].text

print(json.dumps([whole(), streamed(), asyncio.run(awaited()), [m.id for m in anthropic.Anthropic().models.list()]]))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sdk_box(model: tuple[Scripted, str]) -> AsyncIterator[Sandbox]:
    async for box in box_with(await installed("--sdks"), model[1]):
        yield box


@pytest.mark.parametrize("program", [OPENAI, ANTHROPIC], ids=["openai", "anthropic"])
async def test_an_sdk_asks_whole_and_streamed_blocking_and_awaited_and_runs_parallel_calls(
    sdk_box: Sandbox, model: tuple[Scripted, str], program: str
) -> None:
    scripted, _ = model
    scripted.begin([[ONE, TWO]])
    seen = await sdk_box.execute(["/opt/agents/python/bin/python", "-c", program], timeout=60)
    assert seen.exit_code == 0, seen.output
    assert json.loads(seen.stdout) == ["All done: rock-42\n roll-42\n"] * 3 + [["tiny"]]
    assert scripted.streamed == [False, False, True, True, True, False]
    assert {(request.sandbox, request.token) for request in scripted.requests} == {(sdk_box.id, "episode")}


# ---------------------------------------------------------------------------------------------------------------
# Agents
# ---------------------------------------------------------------------------------------------------------------

OPENCODE = {
    "provider": {
        "rockroll": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": "{env:OPENAI_BASE_URL}", "apiKey": "{env:OPENAI_API_KEY}"},
            "models": {"any": {}},
        }
    }
}
AGENTS: dict[str, tuple[str, dict[str, str]]] = {
    "codex": (
        "codex exec --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox -m any"
        ' -c "openai_base_url=\\"$OPENAI_BASE_URL\\"" -c analytics.enabled=false "$TASK"',
        {},
    ),
    "claude-code": ('claude -p "$TASK" --dangerously-skip-permissions', {"IS_SANDBOX": "1"}),
    "qwen-code": ('qwen -p "$TASK" --yolo', {"OPENAI_MODEL": "any"}),
    "opencode": ('opencode run -m rockroll/any "$TASK"', {"OPENCODE_CONFIG_CONTENT": json.dumps(OPENCODE)}),
    "mini-swe-agent": (
        'mini -y -t "$TASK" -m openai/any --exit-immediately',
        {"MSWEA_CONFIGURED": "true", "MSWEA_COST_TRACKING": "ignore_errors", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    ),
}
END: dict[str, list[list[str]]] = {"mini-swe-agent": [["echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"]]}
"""Turns with which an agent is told that its work is done; the others end when the model makes no call."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent_box(model: tuple[Scripted, str]) -> AsyncIterator[Sandbox]:
    async for box in box_with(await installed(), model[1]):
        yield box


async def run(box: Sandbox, agent: str, folder: str, timeout: float = 120) -> Any:
    """The agent in a folder of its own, with the box's own environment and what docs/agents.md adds."""
    line, variables = AGENTS[agent]
    env = {**variables, "TASK": TASK}
    await box.execute(["mkdir", "-p", folder])
    code = f'PATH="/opt/agents/bin:$PATH"; {line}'
    return await box.execute(["bash", "-c", code], env=env, cwd=folder, timeout=timeout)


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agent_runs_commands_with_its_own_tool_and_ends(
    agent_box: Sandbox, model: tuple[Scripted, str], agent: str
) -> None:
    scripted, _ = model
    scripted.begin([[ONE, TWO], ["cat one two"], *END.get(agent, [])])
    folder = f"/srv/{agent}"
    seen = await run(agent_box, agent, folder)
    assert (seen.exit_code, seen.outcome) == (0, "ok"), seen.output[-3000:]
    assert await agent_box.read_file(f"{folder}/one") == b"rock-42\n"
    assert await agent_box.read_file(f"{folder}/two") == b"roll-42\n"
    asked = scripted.conversation
    assert len(asked) == len(scripted.turns) + (agent not in END)
    assert any(TASK in message.content for message in asked[0].messages if message.role == "user")
    assert [message.tool_call_id for message in scripted.results][:3] == ["call_0_0", "call_0_1", "call_1_0"]
    one, two, both = (message.content for message in scripted.results[:3])
    assert "rock-42" in one and "roll-42" in two and "rock-42" in both and "roll-42" in both
    assert [message.reasoning for message in asked[-1].messages if message.tool_calls] == ["hm"] * (len(asked) - 1)
    assert {(request.sandbox, request.token) for request in scripted.requests} == {(agent_box.id, "episode")}
    if agent not in END:
        assert "All done" in seen.stdout.decode()
    assert all(scripted.streamed) == (agent != "mini-swe-agent")


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agent_whose_call_met_a_503_asks_again(
    agent_box: Sandbox, model: tuple[Scripted, str], agent: str
) -> None:
    scripted, _ = model
    scripted.begin([[ONE], *END.get(agent, [])], refusals=1)
    folder = f"/srv/{agent}-again"
    seen = await run(agent_box, agent, folder)
    assert (seen.exit_code, seen.outcome) == (0, "ok"), seen.output[-3000:]
    assert await agent_box.read_file(f"{folder}/one") == b"rock-42\n"
    refused, again = scripted.conversation[:2]
    assert refused.messages == again.messages
