"""The vendors' SDKs before real transcripts: what they send back is known again, and goes on from what was sampled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest

from rockroll.model_service.gateway import Gateway, box_environment
from rockroll.model_service.relay import Relay
from rockroll.rollout.dialogue import Dialogue

from ..model_service.conftest import listening
from .test_dialogue import dialogue

anthropic: Any = pytest.importorskip("anthropic")
pytestmark = pytest.mark.skipif(
    find_spec("rockroll.model_service.dialects") is None, reason="no tools without dialects"
)

CALL = (
    '<think>\nhm\n</think>\n\nI look.\n<tool_call>\n{"name": "look", "arguments": {"path":  "x", "n": 1}}\n</tool_call>'
)
ANSWERS = [CALL, CALL.replace('"x"', '"y"'), "<think>\nso\n</think>\n\nDone — 👀."]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"path": {"type": "string"}, "n": {"type": "integer"}}}


@pytest.fixture
async def talk() -> Dialogue:
    answers = iter(ANSWERS)
    return dialogue(lambda *_: next(answers), "qwen3")[0]


@pytest.fixture
async def environment(tmp_path: Path, talk: Dialogue) -> AsyncIterator[dict[str, str]]:
    gateway, sock = Gateway(), listening()
    address = f"ipc://{tmp_path}/relay"
    async with Relay(address, talk.chat, ["policy"], count=talk.count):
        await gateway.attach("box", sock)
        gateway.route("box", address, "e")
        yield dict(box_environment(sock.getsockname()[1]))
        await gateway.close()


def goes_on(talk: Dialogue) -> None:
    one, two, three = talk.transcript.turns
    assert (two.parent, three.parent) == (one, two), "no turn begins a branch: nothing was tokenized again"
    (sample,) = talk.transcript.samples()
    assert sample.sampled == talk.transcript.sampled


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_chat(environment: dict[str, str], talk: Dialogue, stream: bool) -> None:
    tools: Any = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    messages: list[Any] = [{"role": "user", "content": "a"}]
    async with openai.AsyncOpenAI(
        base_url=environment["OPENAI_BASE_URL"], api_key=environment["OPENAI_API_KEY"], max_retries=0
    ) as client:
        for _ in range(2):
            if stream:
                async with client.chat.completions.stream(model="m", messages=messages, tools=tools) as events:
                    message = (await events.get_final_completion()).choices[0].message
            else:
                message = (
                    (await client.chat.completions.create(model="m", messages=messages, tools=tools)).choices[0].message
                )
            (call,) = message.tool_calls or []
            messages += [
                message.model_dump(exclude_none=True, exclude={"parsed"}),
                {"role": "tool", "tool_call_id": call.id, "content": "r"},
            ]
            for c in messages[-2]["tool_calls"]:
                c["function"].pop("parsed_arguments", None)
        last = await client.chat.completions.create(model="m", messages=messages, tools=tools)
    assert last.choices[0].message.content == "Done — 👀."
    goes_on(talk)


async def test_openai_responses(environment: dict[str, str], talk: Dialogue) -> None:
    tools: Any = [{"type": "function", "name": "look", "parameters": SCHEMA}]
    items: list[Any] = [{"role": "user", "content": "a"}]
    async with openai.AsyncOpenAI(
        base_url=environment["OPENAI_BASE_URL"], api_key=environment["OPENAI_API_KEY"], max_retries=0
    ) as client:
        for _ in range(2):
            answer = await client.responses.create(model="m", input=items, tools=tools)
            items += [item.model_dump(exclude_none=True) for item in answer.output]
            items += [
                {"type": "function_call_output", "call_id": item.call_id, "output": "r"}
                for item in answer.output
                if item.type == "function_call"
            ]
        last = await client.responses.create(model="m", input=items, tools=tools)
    assert last.output_text == "Done — 👀."
    goes_on(talk)


@pytest.mark.parametrize("stream", [False, True])
async def test_anthropic_messages(environment: dict[str, str], talk: Dialogue, stream: bool) -> None:
    tools: Any = [{"name": "look", "input_schema": SCHEMA}]
    messages: list[Any] = [{"role": "user", "content": "a"}]
    async with anthropic.AsyncAnthropic(
        base_url=environment["ANTHROPIC_BASE_URL"], api_key=environment["ANTHROPIC_API_KEY"], max_retries=0
    ) as client:
        counted = await client.messages.count_tokens(model="m", messages=messages, tools=tools)
        for _ in range(2):
            asked: Any = {"model": "m", "max_tokens": 200, "messages": messages, "tools": tools}
            if stream:
                async with client.messages.stream(**asked) as events:
                    answer = await events.get_final_message()
            else:
                answer = await client.messages.create(**asked)
            messages.append({"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in answer.content]})
            results = [
                {"type": "tool_result", "tool_use_id": b.id, "content": "r"}
                for b in answer.content
                if b.type == "tool_use"
            ]
            messages.append({"role": "user", "content": results})
        last = await client.messages.create(model="m", max_tokens=200, messages=messages, tools=tools)
    assert last.content[-1].text == "Done — 👀."
    assert counted.input_tokens == talk.transcript.turns[0].start
    goes_on(talk)
