"""What a program in a sandbox can rely on when it calls the model."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from typing import Any

import aiohttp
import openai
import pytest

from rockroll.errors import EngineError, ModelServiceError, SandboxNotFound, UsageError
from rockroll.model_service.box import MAX_CALLS
from rockroll.model_service.endpoint import MAX_BODIES, MAX_BODY, MAX_CONNECTIONS
from rockroll.model_service.gateway import box_environment
from rockroll.model_service.wire import ChatReply, ChatRequest

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


async def raw(port: int, data: bytes) -> bytes:
    """Sends bytes as they are; returns what comes back until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


def sdk(port: int, **options: Any) -> openai.AsyncOpenAI:
    said = box_environment(port)
    return openai.AsyncOpenAI(base_url=said["OPENAI_BASE_URL"], api_key=said["OPENAI_API_KEY"], **options)


# ---------------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------------


async def test_the_openai_sdk_talks_to_it(place, serve):
    await serve()
    async with sdk(await place.box()) as client:
        answer = await client.chat.completions.create(model="gpt-x", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == "token: hi"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.model == "gpt-x" and answer.id.startswith("chatcmpl-") and answer.created > 1_700_000_000
        assert answer.usage is not None and answer.usage.total_tokens == 7
        assert [model.id async for model in client.models.list()] == ["tiny"]
        assert (await client.models.retrieve("tiny")).id == "tiny"
        with pytest.raises(openai.NotFoundError, match="served: tiny"):
            await client.models.retrieve("gpt-x")


async def test_the_openai_sdk_streams_from_it(place, serve):
    await serve()
    async with sdk(await place.box()) as client:
        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "token: hi"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 4


async def test_the_handler_gets_what_was_said_and_the_gateways_word_on_who_said_it(place, serve):
    seen: list[ChatRequest] = []

    async def handler(request: ChatRequest, on_delta: Any) -> ChatReply:
        seen.append(request)
        return ChatReply(text="", finish_reason="length", prompt_tokens=0, completion_tokens=0)

    await serve(handler)
    await place.box("abc", token="episode-7")
    body = {
        **HELLO,
        "sandbox": "other",
        "token": "stolen",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 5,
        "seed": 3,
    }
    headers = {"Authorization": "Bearer stolen", "X-Sandbox": "other"}
    answer = await place.post(body, "abc", headers=headers)
    assert answer.json["choices"][0]["finish_reason"] == "length"
    (request,) = seen
    assert (request.sandbox, request.token, request.model) == ("abc", "episode-7", "tiny")
    assert (request.temperature, request.top_p, request.max_tokens, request.seed) == (0.5, 0.9, 5, 3)
    assert request.id == answer.json["id"]


async def test_models_follow_what_the_run_serves(place, serve):
    relay = await serve(models=("tiny",))
    await place.box()
    assert (await place.get("/models")).json["data"][0]["id"] == "tiny"
    relay.set_models(["tiny", "org/other"])
    async with asyncio.timeout(5):
        while (await place.get("/models/org/other")).status != 200:
            pass
    assert [model["id"] for model in (await place.get("/models")).json["data"]] == ["tiny", "org/other"]


async def test_64_sandboxes_call_at_once_and_each_gets_its_own_answer(place, serve):
    await serve()
    names = [f"box-{i}" for i in range(64)]
    for name in names:
        await place.box(name, token=f"token-{name}")

    async def chat(name: str) -> None:
        for i in range(5):
            answer = await place.say(f"{name} {i}", name)
            assert answer.json["choices"][0]["message"]["content"] == f"token-{name}: {name} {i}"

    await asyncio.gather(*(chat(name) for name in names))


async def test_a_call_over_the_bound_of_one_sandbox_gets_429_and_leaves_the_others_alone(place, serve, held):
    await serve(held)
    await place.box("greedy")
    await place.box("modest")
    calls = [asyncio.create_task(place.say(sandbox="greedy")) for _ in range(MAX_CALLS)]
    await held.until(lambda: len(held.requests) == MAX_CALLS)
    refused = await place.say(sandbox="greedy")
    assert refused.status == 429 and refused.error["code"] == "rate_limit_exceeded"
    modest = asyncio.create_task(place.say(sandbox="modest"))
    await held.until(lambda: len(held.requests) == MAX_CALLS + 1)
    held.go.set()
    assert {(await call).status for call in [*calls, modest]} == {200}
    assert (await place.say(sandbox="greedy")).status == 200


async def test_a_connection_over_the_bound_waits_until_another_is_closed(place, serve):
    await serve()
    port = await place.box()
    others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
    call = asyncio.create_task(place.say())
    done, _ = await asyncio.wait([call], timeout=0.1)
    assert not done
    others[0][1].close()
    assert (await call).status == 200
    for _, writer in others:
        writer.close()


# ---------------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------------


async def test_a_refusal_by_the_handler_arrives_in_openais_shape(place, serve):
    async def handler(request: ChatRequest, on_delta: Any) -> ChatReply:
        raise ModelServiceError(
            "too long", status=400, type="invalid_request_error", code="context_length_exceeded", param="messages"
        )

    await serve(handler)
    async with sdk(await place.box()) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"


@pytest.mark.parametrize("error", [EngineError("secret host path"), ValueError("secret host path")])
async def test_what_breaks_on_the_host_is_a_500_that_tells_the_sandbox_nothing(place, serve, error):
    async def handler(request: ChatRequest, on_delta: Any) -> ChatReply:
        raise error

    await serve(handler)
    await place.box()
    answer = await place.say()
    assert answer.status == 500 and answer.error["type"] == "server_error" and "secret" not in answer.text


async def test_without_a_route_calls_are_refused_with_the_cause(place):
    await place.box(token=None)
    for answer in (await place.say(), await place.get("/models")):
        assert answer.status == 503 and answer.error["code"] == "no_upstream"


async def test_a_wrong_path_or_method_says_what_there_is(place, serve):
    await serve()
    await place.box()
    answer = await place.get("/embeddings")
    assert answer.status == 404 and "/v1/chat/completions" in answer.error["message"]
    answer = await place.get("/chat/completions")
    assert answer.status == 405 and "POST" in answer.error["message"]


async def test_who_asks_for_a_websocket_is_told_to_use_http(place, serve):
    await serve()
    await place.box()
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await place.http.ws_connect(place.url("/responses"))
    assert caught.value.status == 426
    assert (await place.say()).status == 200


async def test_bytes_that_are_not_http_get_an_openai_shaped_400(place, serve, caplog):
    await serve()
    port = await place.box()
    for data in (b"\x16\x03\x01\x02\x00\x01garbage\r\n\r\n", b"GET /v1/models HTTP/9.9\r\n\r\n", b"GET " + b"a" * 9000):
        answer = await raw(port, data + b"\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 400 " in head.splitlines()[0]
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert caplog.records == []  # a sandbox cannot fill the host's log
    assert (await place.say()).status == 200


async def test_a_chunked_body_with_a_broken_length_gets_a_400(place, serve):
    await serve()
    port = await place.box()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 400 " in (await raw(port, head + b"zz\r\n{}\r\n0\r\n\r\n")).splitlines()[0]


async def test_a_body_over_the_limit_gets_413(place, serve):
    await serve()
    await place.box()
    answer = await place.say("x" * MAX_BODY)
    assert answer.status == 413 and answer.error["code"] == "request_too_large"

    async def chunks() -> Any:  # without a Content-Length
        for _ in range(MAX_BODY // 2**20 + 1):
            yield b" " * 2**20

    async with place.http.post(place.url(), data=chunks()) as response:
        assert response.status == 413
    assert (await place.say("x" * (MAX_BODY - 1000))).status == 200


async def test_bodies_that_never_end_hold_little_of_the_hosts_memory_and_nobody_else(place, serve):
    await serve()
    port = await place.box("greedy")
    await place.box("modest")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY}\r\n\r\n".encode()
    fits = MAX_BODIES // MAX_BODY
    slow = []
    for _ in range(fits + 1):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"x" * (MAX_BODY - 1))
        await writer.drain()
        slow.append((reader, writer))
    answers = [asyncio.create_task(reader.read(100)) for reader, _ in slow]
    done, waiting = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result()[:12] for task in done] == [b"HTTP/1.1 429"] and len(waiting) == fits
    slow_head = await asyncio.open_connection("127.0.0.1", port)
    slow_head[1].write(b"POST /v1/chat/completions HTTP/1.1\r\nX-Slow: ")
    assert (await place.say(sandbox="modest")).status == 200
    for _, writer in [*slow, slow_head]:
        writer.close()
    await asyncio.gather(*answers, return_exceptions=True)
    while (await place.say(sandbox="greedy")).status != 200:
        await asyncio.sleep(0.01)


async def test_a_compressed_body_is_refused_not_unpacked(place, serve):
    await serve()
    await place.box()
    answer = await place.post(gzip.compress(json.dumps(HELLO).encode()), headers={"Content-Encoding": "gzip"})
    assert answer.status == 400 and "not JSON" in answer.error["message"]


async def test_a_client_that_expects_100_continue_is_told_to_go_on(place, serve):
    await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", await place.box())
    body = json.dumps(HELLO).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    writer.write(head.encode())
    async with asyncio.timeout(5):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


# ---------------------------------------------------------------------------------------------------------------
# Hanging up, changing the route, coming and going
# ---------------------------------------------------------------------------------------------------------------


async def test_a_client_that_hangs_up_cancels_the_call_at_the_handler(place, serve, held):
    await serve(held)
    await place.box()
    call = asyncio.create_task(place.say("never mind"))
    await held.until(lambda: len(held.requests) == 1)
    call.cancel()
    await held.until(lambda: held.cancelled == held.requests)


async def test_a_new_route_cancels_the_calls_under_the_old_one(place, serve, held):
    await serve(held)
    await place.box(token="one")
    call = asyncio.create_task(place.say())
    await held.until(lambda: len(held.requests) == 1)
    place.gateway.route("box", place.address, "two")
    await held.until(lambda: len(held.cancelled) == 1)
    answer = await call
    assert answer.status == 503 and answer.error["code"] == "route_changed"
    held.go.set()
    assert (await place.say()).json["choices"][0]["message"]["content"] == "two: hello"


async def test_saying_the_same_route_again_changes_nothing(place, serve, held):
    await serve(held)
    await place.box(token="one")
    call = asyncio.create_task(place.say())
    await held.until(lambda: len(held.requests) == 1)
    place.gateway.route("box", place.address, "one")
    held.go.set()
    assert (await call).status == 200


async def test_no_byte_sent_before_a_route_change_becomes_a_call_after_it(place, serve, held):
    held.go.set()
    await serve(held)
    port = await place.box(token="one")
    body = json.dumps(HELLO).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    idle_reader, idle = await asyncio.open_connection("127.0.0.1", port)  # accepted, has had an answer, idle
    idle.write(head + body)
    assert (await idle_reader.readline()).startswith(b"HTTP/1.1 200")
    half_reader, half = await asyncio.open_connection("127.0.0.1", port)  # accepted, half of a body sent
    half.write(head + body[:10])
    await place.say()  # by now the gateway has seen both
    waiting = socket.create_connection(("127.0.0.1", port))  # not accepted yet: this loop has not run since
    waiting.sendall(head + body)
    idle.write(head + body)
    half.write(body[10:])
    place.gateway.route("box", place.address, "two")
    with waiting:
        waiting.setblocking(False)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            async with asyncio.timeout(5):
                if not await asyncio.get_running_loop().sock_recv(waiting, 1):
                    raise ConnectionResetError
    for reader in (idle_reader, half_reader):
        try:
            async with asyncio.timeout(5):
                await reader.read()  # to the end: the connection is closed
        except ConnectionResetError:
            pass
    assert [request.token for request in held.requests] == ["one", "one"]
    assert (await place.say()).status == 200
    assert held.requests[-1].token == "two"


async def test_after_a_restart_the_new_socket_serves_under_the_old_route(place, serve):
    await serve()
    old = await place.box(token="one")
    new = await place.box(token=None)
    assert new != old
    assert (await place.say()).json["choices"][0]["message"]["content"] == "one: hello"
    with pytest.raises(OSError):
        await raw(old, b"")


async def test_after_a_death_the_route_waits_for_the_next_socket(place, serve):
    await serve()
    port = await place.box(token="one")
    place.gateway.shut("box")
    place.gateway.shut("box")
    with pytest.raises(OSError):
        await raw(port, b"")
    place.gateway.route("box", place.address, "two")
    await place.box(token=None)
    assert (await place.say()).json["choices"][0]["message"]["content"] == "two: hello"
    place.gateway.shut("box")
    await place.gateway.detach("box")
    with pytest.raises(SandboxNotFound):
        place.gateway.route("box", place.address, "two")


async def test_detach_ends_the_sandboxs_calls_and_its_socket(place, serve, held):
    await serve(held)
    port = await place.box("gone")
    await place.box("stays")
    call = asyncio.create_task(place.say(sandbox="gone"))
    await held.until(lambda: len(held.requests) == 1)
    await place.gateway.detach("gone")
    await held.until(lambda: len(held.cancelled) == 1)
    with pytest.raises(aiohttp.ClientError):
        await call
    with pytest.raises(OSError):
        await raw(port, b"")
    held.go.set()
    assert (await place.say(sandbox="stays")).status == 200
    await place.gateway.detach("gone")  # a second time does nothing


async def test_a_route_for_a_sandbox_that_is_not_here_or_to_no_relay_is_refused(place):
    with pytest.raises(SandboxNotFound, match="nobody"):
        place.gateway.route("nobody", place.address, "t")
    await place.box(token=None)
    with pytest.raises(UsageError, match="ipc://"):
        place.gateway.route("box", "ftp://example.com", "t")
    with pytest.raises(UsageError, match="a relay has neither"):
        place.gateway.route("box", place.address, "t", key="secret")


async def test_close_leaves_no_task_behind(place, serve, held):
    await serve(held)
    await place.box()
    before = asyncio.all_tasks()
    call = asyncio.create_task(place.say())
    await held.until(lambda: len(held.requests) == 1)
    await place.gateway.close()
    with pytest.raises(aiohttp.ClientError):
        await call
    left = {task.get_coro().__qualname__ for task in asyncio.all_tasks() - before}  # pyright: ignore
    assert not {name for name in left if "Upstream" in name or "Endpoint" in name or "RequestHandler" in name}
