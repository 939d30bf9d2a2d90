"""A client that asks again gets the answer that the model has already given, or is giving: no turn is made twice."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from rockroll.model_service import box, calls
from rockroll.model_service.wire import ChatReply, Delta

SAID = [{"role": "user", "content": "hello"}]
STAINLESS = {"X-Stainless-Lang": "python", "X-Stainless-Retry-Count": "0"}
AGAIN = {**STAINLESS, "X-Stainless-Retry-Count": "1"}


def reply(text: str = "Hello") -> ChatReply:
    return ChatReply(text=text, finish_reason="stop", prompt_tokens=3, completion_tokens=2)


class Numbered:
    """Each call gets an answer of its own."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, request: Any, on_delta: Any) -> ChatReply:
        self.calls += 1
        return reply(f"answer {self.calls}")


@contextmanager
def client(port: int, headers: dict[str, str] | None = None, **fields: Any) -> Iterator[socket.socket]:
    """A client that has asked; what it does then is the test's."""
    body = json.dumps({"messages": SAID, **fields}).encode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(head.encode() + body)
        sock.setblocking(False)
        yield sock


async def read(sock: socket.socket, what: bytes) -> bytes:
    data = b""
    async with asyncio.timeout(5):
        while what not in data:
            data += await asyncio.get_running_loop().sock_recv(sock, 65536)
    return data


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture
def short_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "HOLD_S", 0.2)
    monkeypatch.setattr(box, "HOLD_S", 0.2)


# ---------------------------------------------------------------------------------------------------------------
# While the model speaks
# ---------------------------------------------------------------------------------------------------------------


async def test_an_sdk_that_times_out_and_tries_again_gets_the_one_completion(place, serve, held):
    await serve(held)
    port = await place.box()
    url = f"http://127.0.0.1:{port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="x", timeout=0.3, max_retries=5) as sdk:
        asking = asyncio.create_task(sdk.chat.completions.create(model="m", messages=SAID))  # type: ignore[arg-type]
        await held.until(lambda: len(held.requests) == 1)
        await asyncio.sleep(0.5)  # its first connection is gone by now
        held.go.set()
        answer = await asking
    assert answer.choices[0].message.content == "token: hello"
    assert len(held.requests) == 1 and not held.cancelled
    assert answer.id == held.requests[0].id


async def test_a_stream_that_broke_is_told_again_from_its_beginning(place, serve, speaking):
    await serve(speaking)
    port = await place.box()
    with client(port, STAINLESS, stream=True) as sock:
        await speaking.say(Delta(text="Hel"))
        first = await read(sock, b"Hel")
    await speaking.say(Delta(text="lo"))
    with client(port, AGAIN, stream=True) as sock:
        again = await read(sock, b'"lo"')
        await speaking.say(reply())
        again += await read(sock, b"[DONE]")
    # event for event: how many of them a piece of HTTP carries is a matter of time
    events = [line for line in first.splitlines() if line.startswith(b"data: ")]
    assert events == [line for line in again.splitlines() if line.startswith(b"data: ")][: len(events)]
    assert len(speaking.requests) == 1 and speaking.requests[0].id.encode() in again
    assert again.count(b'"Hel"') == again.count(b'"lo"') == 1


async def test_a_client_that_is_not_known_to_retry_is_not_waited_for(place, serve, held):
    await serve(held)
    port = await place.box()
    with client(port):
        await held.until(lambda: len(held.requests) == 1)
        left = time.monotonic()
    await held.until(lambda: len(held.cancelled) == 1)
    assert time.monotonic() - left < 0.1 + 0.4  # 0.1 s promised, the rest for a busy machine


async def test_a_client_that_does_not_come_back_is_waited_for_no_longer_than_said(place, serve, held, short_hold):
    await serve(held)
    port = await place.box()
    with client(port, STAINLESS):
        await held.until(lambda: len(held.requests) == 1)
        left = time.monotonic()
    await held.until(lambda: len(held.cancelled) == 1)
    assert 0.15 < time.monotonic() - left < 2
    held.go.set()
    assert (await place.say()).status == 200 and len(held.requests) == 2


async def test_calls_that_wait_for_their_clients_count_as_bytes_under_way(place, serve, held):
    await serve(held)
    port = await place.box()
    for number in range(5):
        body = json.dumps({"messages": SAID, "user": str(number) * (7 * 2**20)}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Stainless-Lang: python\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        if number < 4:
            await held.until(lambda: len(held.requests) == number + 1)  # noqa: B023
        else:
            assert b" 429 " in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


async def test_a_held_call_ends_with_its_route_and_is_no_answer_under_the_next(place, serve, held):
    await serve(held)
    port = await place.box(token="one")
    with client(port, STAINLESS):
        await held.until(lambda: len(held.requests) == 1)
    place.gateway.route("box", place.address, "two")
    await held.until(lambda: len(held.cancelled) == 1)
    held.go.set()
    with client(port, AGAIN) as sock:
        assert b"two: hello" in await read(sock, b"hello")


async def test_two_equal_prompts_at_once_are_two_calls(place, serve, held):
    await serve(held)
    port = await place.box()
    with client(port, STAINLESS) as one, client(port, STAINLESS) as two:
        await held.until(lambda: len(held.requests) == 2)
        held.go.set()
        await read(one, b"hello")
        await read(two, b"hello")


async def test_a_call_that_failed_is_made_anew(place, serve, speaking):
    relay = await serve(speaking)
    port = await place.box()
    with client(port, STAINLESS) as sock:
        await speaking.until(lambda: len(speaking.requests) == 1)
        await relay.close()
        assert b"503" in await read(sock, b"upstream_lost")
    numbered = Numbered()
    await serve(numbered)
    async with asyncio.timeout(5):
        while (await place.get("/models")).status != 200:
            pass
    with client(port, AGAIN) as sock:
        await read(sock, b"answer 1")


# ---------------------------------------------------------------------------------------------------------------
# When all is said
# ---------------------------------------------------------------------------------------------------------------


async def test_an_answer_that_was_read_is_not_given_again(place, serve):
    await serve(Numbered())
    port = await place.box()
    for number in range(1, 4):
        with client(port, AGAIN) as sock:
            assert f"answer {number}".encode() in await read(sock, b"answer")


async def test_on_one_connection_the_next_request_takes_the_answer_before_as_delivered(place, serve):
    await serve(Numbered())
    await place.box()
    for number in range(1, 4):
        answer = await place.say()
        assert answer.json["choices"][0]["message"]["content"] == f"answer {number}"
    assert len(place.http.connector._conns) == 1


@pytest.mark.parametrize("streaming", [False, True])
async def test_an_answer_that_was_sent_and_not_read_is_given_again(place, serve, streaming):
    numbered = Numbered()
    await serve(numbered)
    port = await place.box()
    with client(port, stream=streaming) as sock:
        await asyncio.get_running_loop().sock_recv(sock, 1)  # the rest lies unread, and the kernel says so
    with client(port, stream=streaming) as sock:
        assert b"answer 1" in await read(sock, b"answer")
    assert numbered.calls == 1


async def test_an_answer_whose_client_was_reset_is_given_again(place, serve):
    numbered = Numbered()
    await serve(numbered)
    port = await place.box()
    with client(port) as sock:
        await read(sock, b"answer 1")
        reset(sock)
    with client(port) as sock:
        await read(sock, b"answer 1")
    assert numbered.calls == 1
