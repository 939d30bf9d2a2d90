"""The gateway beside training: it forwards to a server, records and replays one, and answers from a script."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from aiohttp import web
from yarl import URL

from rockroll.cli.main import run
from rockroll.errors import UsageError
from rockroll.model_service import script
from rockroll.model_service.alone import gateway
from rockroll.model_service.recording import Recorder, Replay
from rockroll.model_service.relay import OnDelta
from rockroll.model_service.script import Scripted
from rockroll.model_service.service import COMPATIBLE, RemoteServer, Service
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta, ToolCall

ASK: Any = {"model": "m", "messages": [{"role": "user", "content": "hello there"}]}
TOOL = {"name": "run", "description": "", "input_schema": {"type": "object", "properties": {"command": {}}}}


async def parrot(request: ChatRequest, on_delta: OnDelta | None) -> ChatReply:
    """Says what it heard, word by word; calls the first tool that it is offered."""
    said = request.messages[-1].content
    for word in said.split() if on_delta else ():
        assert on_delta is not None
        on_delta(Delta(text=f"{word} "))
    text = f"{said} " if said else ""
    calls = [ToolCall(id="call_7", name=each.name, arguments='{"command": "ls"}') for each in request.tools]
    finish = "tool_calls" if calls else "stop"
    return ChatReply(text=text, tool_calls=calls, finish_reason=finish, prompt_tokens=5, completion_tokens=2)


class Behind:
    """A server whose answers are written bytes, and what it was asked."""

    def __init__(self, *answers: tuple[int, str, list[bytes]]) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.go = asyncio.Event()
        self.ended = asyncio.Event()
        self._answers = list(answers)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append((request.raw_path, dict(request.headers), await request.read()))
        status, kind, pieces = self._answers.pop(0)
        response = web.StreamResponse(status=status, headers={"Content-Type": kind, "X-Said": "it"})
        await response.prepare(request)
        try:
            for piece in pieces:
                if piece == b"wait":
                    await self.go.wait()
                elif piece == b"break":
                    assert request.transport is not None
                    request.transport.abort()
                else:
                    await response.write(piece)
        finally:
            self.ended.set()
        return response

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = web.Server(self.answer, handler_cancellation=True)
        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        listening.close()
        await server.shutdown(0.1)


def to_openai(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="the-clients", max_retries=0)


def to_anthropic(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="the-clients", max_retries=0)


async def test_bytes_are_forwarded_as_they_are_and_the_key_is_replaced() -> None:
    body = b'{ "odd" :   "spacing", "unknown": [1] }'
    behind = Behind((418, "application/json; charset=utf-8", [b'{"any": ', b'"bytes"}\n']))
    async with behind.serving() as url, gateway(Service(RemoteServer(url, "the-real"))) as front, http() as client:
        asked = URL(f"{front}/v1/chat/completions?a=%2F", encoded=True)
        headers = {"Authorization": "Bearer the-clients", "X-Api-Key": "another", "X-Mine": "kept"}
        async with client.post(asked, data=body, headers=headers) as answer:
            assert (answer.status, await answer.read()) == (418, b'{"any": "bytes"}\n')
            assert answer.headers["X-Said"] == "it"
            assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    path, sent, got = behind.asked[0]
    assert (path, got) == ("/v1/chat/completions?a=%2F", body)
    assert (sent["Authorization"], sent["X-Mine"]) == ("Bearer the-real", "kept")
    assert "the-clients" not in str(sent) and "another" not in str(sent)


async def test_a_stream_goes_through_as_it_comes_and_a_client_that_leaves_ends_it() -> None:
    events = [b'data: {"choices": []}\n\n', b"wait"]
    behind = Behind((200, "text/event-stream", events))
    async with behind.serving() as url, gateway(Service(RemoteServer(url))) as front, http() as client:
        async with client.post(f"{front}/v1/completions", data=b"{}") as answer:
            assert await answer.content.readline() == b'data: {"choices": []}\n'
        async with asyncio.timeout(5):
            await behind.ended.wait()


async def test_an_answer_that_breaks_off_never_looks_whole() -> None:
    behind = Behind((200, "text/event-stream", [b"data: 1\n\n", b"break"]))
    async with behind.serving() as url, gateway(Service(RemoteServer(url))) as front, http() as client:
        with pytest.raises(aiohttp.ClientError):
            async with client.post(f"{front}/v1/completions", data=b"{}") as answer:
                await answer.read()


async def test_a_server_that_is_not_there_is_said_in_the_clients_dialect() -> None:
    async with gateway(Service(RemoteServer("http://127.0.0.1:9/v1"))) as front:
        with pytest.raises(openai.InternalServerError, match="cannot be reached"):
            await to_openai(front).chat.completions.create(**ASK)
        with pytest.raises(anthropic.InternalServerError, match="cannot be reached"):
            await to_anthropic(front).messages.create(max_tokens=9, **ASK)


async def test_openai_sdk_through_two_gateways() -> None:
    async with gateway(Scripted(parrot, ["tiny"])) as back, gateway(Service(RemoteServer(f"{back}/v1"))) as front:
        client = to_openai(front)
        assert [each.id async for each in client.models.list()] == ["tiny"]
        whole = await client.chat.completions.create(**ASK)
        assert whole.choices[0].message.content == "hello there "
        stream = await client.chat.completions.create(stream=True, **ASK)
        assert [c.choices[0].delta.content async for c in stream if c.choices[0].delta.content] == ["hello ", "there "]
        answer = await client.responses.create(model="m", input="as a response")
        assert answer.output_text == "as a response "


async def test_anthropics_messages_are_asked_as_chat() -> None:
    async with gateway(Scripted(parrot)) as back, gateway(Service(RemoteServer(f"{back}/v1"))) as front:
        client = to_anthropic(front)
        whole: Any = await client.messages.create(max_tokens=9, tools=[TOOL], **ASK)  # pyright: ignore
        assert whole.content[0].text == "hello there "
        assert (whole.content[1].name, whole.content[1].input) == ("run", {"command": "ls"})
        assert (whole.stop_reason, whole.usage.input_tokens, whole.usage.output_tokens) == ("tool_use", 5, 2)
        result = {"type": "tool_result", "tool_use_id": whole.content[1].id, "content": "two files"}
        talk: Any = [*ASK["messages"], {"role": "assistant", "content": whole.content}]
        async with client.messages.stream(
            model="m", max_tokens=9, messages=[*talk, {"role": "user", "content": [result]}], tools=[TOOL]
        ) as stream:  # pyright: ignore
            assert [word async for word in stream.text_stream] == ["two ", "files "]
            assert (await stream.get_final_message()).stop_reason == "tool_use"
        with pytest.raises(anthropic.NotFoundError, match="does not count"):
            await client.messages.count_tokens(**ASK)


async def test_what_a_server_refuses_is_refused_in_the_clients_dialect() -> None:
    refusal = b'{"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}'
    behind = Behind((429, "application/json", [refusal]))
    async with behind.serving() as url, gateway(Service(RemoteServer(url))) as front:
        with pytest.raises(anthropic.RateLimitError, match="slow down"):
            await to_anthropic(front).messages.create(max_tokens=9, **ASK)


async def test_a_dialect_that_the_server_speaks_is_forwarded() -> None:
    behind = Behind((200, "application/json", [b'{"input_tokens": 42}']))
    async with (
        behind.serving() as url,
        gateway(Service(RemoteServer(url, "the-real"), {*COMPATIBLE, "messages"})) as front,
    ):
        assert (await to_anthropic(front).messages.count_tokens(**ASK)).input_tokens == 42
    assert behind.asked[0][0] == "/v1/messages/count_tokens"
    assert behind.asked[0][1]["x-api-key"] == "the-real"


async def test_a_recording_is_replayed_without_the_server(tmp_path: Path) -> None:
    talk = tmp_path / "talk.jsonl"

    async def converse(front: str) -> list[str]:
        client, said = to_openai(front), []
        for _ in range(2):  # the second differs: answers to equal requests come in their order
            said.append((await client.chat.completions.create(**ASK)).model_dump_json())
        stream = await client.chat.completions.create(stream=True, **ASK)
        said += [chunk.model_dump_json() async for chunk in stream]
        message = await to_anthropic(front).messages.create(max_tokens=9, **ASK)
        return [*said, message.content[0].model_dump_json()]

    async with (
        gateway(Scripted(parrot)) as back,
        gateway(Service(Recorder(RemoteServer(f"{back}/v1", "the-real"), talk))) as front,
    ):
        first = await converse(front)
    assert first[0] != first[1]  # their ids
    assert "the-real" not in talk.read_text() and "the-clients" not in talk.read_text()
    assert talk.stat().st_mode & 0o077 == 0
    for _ in range(2):
        async with gateway(Service(Replay(talk))) as front:
            assert await converse(front) == first
            with pytest.raises(openai.NotFoundError, match="recorded 2 times, and this is time 3"):
                await to_openai(front).chat.completions.create(**ASK)


async def test_answers_that_are_no_text_are_kept_too(tmp_path: Path) -> None:
    behind = Behind((200, "application/octet-stream", [b"\xff\x00\xfe"]))
    async with behind.serving() as url, http() as client:
        for make in (lambda: Recorder(RemoteServer(url), tmp_path / "f"), lambda: Replay(tmp_path / "f")):
            async with gateway(Service(make())) as front, client.post(f"{front}/v1/completions", data=b"\xee") as got:
                assert await got.read() == b"\xff\x00\xfe"
            assert json.loads((tmp_path / "f").read_text())["asked_base64"] == "7g=="


async def test_a_script_answers_line_by_line_in_every_dialect(tmp_path: Path) -> None:
    file = tmp_path / "script"
    file.write_text('{"text": "First of all."}\n\n{"calls": [{"name": "run", "arguments": {"command": "ls"}}]}\n')
    async with gateway(script.from_file(file)) as front:
        stream = await to_openai(front).chat.completions.create(stream=True, **ASK)
        words = [c.choices[0].delta.content async for c in stream if c.choices[0].delta.content]
        assert words == ["First", " of", " all."]
        message: Any = await to_anthropic(front).messages.create(max_tokens=9, tools=[TOOL], **ASK)  # pyright: ignore
        assert message.content[0].input == {"command": "ls"}
        with pytest.raises(openai.BadRequestError, match="2 answers, and all are given"):
            await to_openai(front).chat.completions.create(**ASK)


async def test_many_clients_at_once_are_no_sandbox() -> None:
    """The bounds of one sandbox (16 calls, 64 connections) are not those of a host's own programs."""
    async with gateway(Scripted(parrot)) as back, gateway(Service(RemoteServer(f"{back}/v1"))) as front:
        client = to_openai(front)
        answers = await asyncio.gather(*(client.chat.completions.create(**ASK) for _ in range(100)))
        assert {each.choices[0].message.content for each in answers} == {"hello there "}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost:8000", "an upstream is http"),
        ("ftp://a/v1", "an upstream is http"),
        ("http://u:p@a/v1", "holds no password"),
        ("http://a/v1?x=1", "an upstream is http"),
    ],
)
def test_what_is_no_url(url: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        RemoteServer(url)


def test_wrong_uses_of_the_command_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    there.write_text("no json\n")
    url = "http://127.0.0.1:9/v1"
    for arguments, why in (
        ([], "one of --upstream, --replay and --script; got none"),
        (["--upstream", url, "--replay", str(there)], "got --upstream and --replay"),
        (["--replay", str(there), "--record", "x"], "--record writes what --upstream answers"),
        (["--upstream", url, "--record", str(there)], "there already"),
        (["--upstream", url, "--key-env", "NO_SUCH_KEY"], "the environment has no NO_SUCH_KEY"),
        (["--upstream", url, "--speaks", "latin"], "a server speaks chat, completions"),
        (["--replay", str(there)], "line 1: not a line of a recording"),
        (["--replay", str(tmp_path / "none")], "cannot be read"),
        (["--script", str(there)], "line 1: an answer is"),
        (["--upstream", "nowhere"], "an upstream is http"),
    ):
        assert run(["model-service", *arguments]) == 2
        assert why in capsys.readouterr().err.replace("\n", " ")


async def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    file = tmp_path / "script"
    file.write_text('{"text": "Hello."}\n')
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rockroll", "model-service", "--script", str(file), "--port", "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    front = (await process.stdout.readline()).split()[1].decode()
    assert (await to_openai(front).chat.completions.create(**ASK)).choices[0].message.content == "Hello."
    process.send_signal(signal.SIGTERM)
    _, said = await process.communicate()
    assert (process.returncode, said) == (0, b"rockroll: ended\n")


def http() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()
