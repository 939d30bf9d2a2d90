"""What a client can rely on while the model speaks: in every dialect, event for event."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from rockroll.errors import ModelServiceError
from rockroll.model_service import outlet
from rockroll.model_service.box import MAX_CALLS
from rockroll.model_service.wire import ChatReply, Delta
from tests.model_service.speech import read

SAID = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": SAID},
    "/completions": {"prompt": "hi"},
    "/responses": {"input": "hi"},
    "/messages": {"messages": SAID, "max_tokens": 9},
}
REPLY = ChatReply(text="Hello", finish_reason="stop", prompt_tokens=3, completion_tokens=2)
every_dialect = pytest.mark.parametrize("path", list(BODIES))


@asynccontextmanager
async def asking(place: Any, path: str = "/chat/completions", **fields: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    async with asyncio.timeout(5):
        body = {**BODIES[path], "stream": True, **fields}
        async with place.http.post(place.url(path), json=body) as response:
            yield response


async def until(response: aiohttp.ClientResponse, what: bytes) -> bytes:
    data = b""
    while what not in data:
        piece = await response.content.readany()
        assert piece, f"the stream ended without {what!r}: {data!r}"
        data += piece
    return data


# ---------------------------------------------------------------------------------------------------------------
# As the model speaks
# ---------------------------------------------------------------------------------------------------------------


@every_dialect
async def test_each_word_arrives_when_it_is_said(place, serve, speaking, path):
    await serve(speaking)
    await place.box()
    await speaking.say(Delta(text="Hel"))
    async with asking(place, path) as response:
        assert response.status == 200 and response.content_type == "text/event-stream"
        assert await until(response, b'"Hel"')
        await speaking.say(Delta(text="lo"))
        assert await until(response, b'"lo"')
        await speaking.say(REPLY)
        rest = await response.read()
    assert read(rest)


@every_dialect
async def test_the_headers_do_not_wait_for_a_slow_first_word(place, serve, speaking, path, monkeypatch):
    monkeypatch.setattr(outlet, "HEADERS_AFTER_S", 0.02)
    await serve(speaking)
    await place.box()
    async with asking(place, path) as response:
        assert response.status == 200
        await speaking.say(REPLY)
        assert b"Hello" in await response.read()


@every_dialect
async def test_a_long_silence_is_filled_with_pings(place, serve, speaking, path, monkeypatch):
    monkeypatch.setattr(outlet, "HEADERS_AFTER_S", 0.02)
    monkeypatch.setattr(outlet, "PING_AFTER_S", 0.02)
    await serve(speaking)
    await place.box()
    ping = b"event: ping" if path == "/messages" else b": keep-alive"
    async with asking(place, path) as response:
        for _ in range(3):
            await until(response, ping)
        await speaking.say(REPLY)
        assert b"Hello" in await response.read()


async def test_a_handler_that_streams_nothing_is_streamed_as_one_piece(place, serve):
    await serve()
    await place.box()
    async with asking(place) as response:
        events = read(await response.read())
    said = [chunk["choices"][0]["delta"].get("content") for _, chunk in events[:-1]]
    assert said == ["", "token: hi", None]


async def test_several_completions_are_made_at_once_and_joined(place, serve, speaking):
    await serve(speaking)
    await place.box()
    async with asking(place, n=3) as response:
        await speaking.until(lambda: len(speaking.requests) == 3)
        assert sorted(request.index for request in speaking.requests) == [0, 1, 2]
        assert len({request.id for request in speaking.requests}) == 1
        await speaking.say(Delta(text="Hel"), REPLY)
        events = read(await response.read())
    texts = {index: "" for index in range(3)}
    for _, chunk in events[:-1]:
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert set(texts.values()) == {"Hello"}


async def test_several_completions_come_in_one_answer_where_nothing_streams(place, serve, speaking):
    await serve(speaking)
    await place.box()
    await speaking.say(REPLY)
    answer = (await place.say(n=2)).json
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["Hello", "Hello"]
    assert answer["usage"]["completion_tokens"] == 4


async def test_each_of_several_completions_counts_as_a_call_under_way(place, serve, speaking):
    await serve(speaking)
    await place.box()
    async with asking(place, n=MAX_CALLS - 1):
        await speaking.until(lambda: len(speaking.requests) == MAX_CALLS - 1)
        refused = await place.say(n=2)
        assert refused.status == 429 and refused.error["code"] == "rate_limit_exceeded"
    await speaking.until(lambda: speaking.cancelled == MAX_CALLS - 1)
    await speaking.say(REPLY)
    assert (await place.say(n=2)).status == 200


# ---------------------------------------------------------------------------------------------------------------
# When it goes wrong
# ---------------------------------------------------------------------------------------------------------------

TOO_LONG = ModelServiceError("9 > 8", status=400, type="invalid_request_error", code="context_length_exceeded")


@every_dialect
async def test_a_refusal_before_the_first_word_has_its_own_status(place, serve, speaking, path):
    await serve(speaking)
    await place.box()
    await speaking.say(TOO_LONG)
    async with asking(place, path) as response:
        assert response.status == 400 and response.content_type == "application/json"
        assert "9 > 8" in (await response.json())["error"]["message"]


@every_dialect
async def test_a_failure_after_the_first_word_is_the_vendors_event_and_the_streams_end(place, serve, speaking, path):
    await serve(speaking)
    await place.box()
    await speaking.say(Delta(text="Hel"), ModelServiceError("gone", status=503, code="upstream_lost"))
    async with asking(place, path) as response:
        assert response.status == 200
        events = read(await response.read())
    assert events[-1][1] != "[DONE]"
    kinds = [kind for kind, _ in events if kind]
    if path == "/responses":
        assert kinds[-2:] == ["error", "response.failed"]
    elif path == "/messages":
        assert events[-1] == ("error", {"type": "error", "error": {"type": "overloaded_error", "message": "gone"}})
    else:
        assert events[-1][1]["error"]["code"] == "upstream_lost"


async def test_what_breaks_on_the_host_in_mid_stream_tells_the_sandbox_nothing(place, serve, speaking):
    await serve(speaking)
    await place.box()
    await speaking.say(Delta(text="Hel"), ValueError("secret host path"))
    async with asking(place) as response:
        data = await response.read()
    assert b"secret" not in data and read(data)[-1][1]["error"]["type"] == "server_error"


async def test_one_failure_of_several_completions_ends_all(place, serve):
    begun = asyncio.Event()
    cancelled = asyncio.Event()

    async def handler(request: Any, on_delta: Any) -> ChatReply:
        if request.index == 0:
            await begun.wait()
            raise TOO_LONG
        begun.set()
        try:
            return await asyncio.Future()
        finally:
            cancelled.set()

    await serve(handler)
    await place.box()
    for streaming in (False, True):
        assert (await place.say(n=2, stream=streaming)).status == 400
        await asyncio.wait_for(cancelled.wait(), 5)
        begun.clear()
        cancelled.clear()


@every_dialect
async def test_a_client_that_leaves_in_mid_stream_cancels_the_call(place, serve, speaking, path):
    await serve(speaking)
    await place.box()
    await speaking.say(Delta(text="Hel"))
    async with asking(place, path) as response:
        await until(response, b"Hel")
    await speaking.until(lambda: speaking.cancelled == 1)


async def test_a_new_route_ends_a_stream_of_the_old_one(place, serve, speaking):
    await serve(speaking)
    await place.box(token="one")
    await speaking.say(Delta(text="Hel"))
    async with asking(place) as response:
        await until(response, b"Hel")
        place.gateway.route("box", place.address, "two")
        (_, last) = read(await response.read())[-1]
    assert last["error"]["code"] == "route_changed"
    await speaking.until(lambda: speaking.cancelled == 1)


async def test_a_relay_that_is_lost_in_mid_stream_is_said_at_once(place, serve, speaking):
    relay = await serve(speaking)
    await place.box()
    await speaking.say(Delta(text="Hel"))
    async with asking(place) as response:
        await until(response, b"Hel")
        await relay.close()
        (_, last) = read(await response.read())[-1]
    assert last["error"]["code"] == "upstream_lost"


async def test_a_reader_that_stops_reading_is_cut_off_and_hurts_nobody_else(
    place, serve, speaking, monkeypatch, caplog
):
    monkeypatch.setattr(outlet, "STALLED_S", 0.2)
    await serve(speaking)
    port = await place.box()
    await place.box("other")
    await speaking.say(*[Delta(text="x" * 100_000)] * 200)
    body = json.dumps({"messages": SAID, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", port))
        slow.sendall(head + body)
        await speaking.until(lambda: len(speaking.requests) == 1)
        other = asyncio.create_task(place.say(sandbox="other"))
        await speaking.until(lambda: speaking.cancelled == 1)
        await speaking.say(REPLY)
        assert (await other).status == 200
    assert caplog.records == []  # a sandbox cannot fill the host's log


async def test_a_connection_goes_on_after_a_stream(place, serve):
    await serve()
    await place.box()
    for _ in range(3):
        async with asking(place) as response:
            assert read(await response.read())[-1] == (None, "[DONE]")
    assert len(place.http.connector._conns) == 1
