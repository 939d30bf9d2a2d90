"""What one sandbox does to its endpoint hurts only that sandbox: beside each of these, another's call is answered in
milliseconds. Measured in one process with the gateway, so the attacker's own work counts against it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest

from rockroll.model_service import endpoint
from rockroll.model_service.endpoint import MAX_BODY, MAX_CONNECTIONS

QUICK_S = 0.1
"""The best of five: a few milliseconds here; the rest is for a machine that does other things."""
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


async def _quick(place: Any) -> None:
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        async with asyncio.timeout(5):
            assert (await place.say(sandbox="other")).status == 200
        took.append(time.perf_counter() - begun)
    assert min(took) < QUICK_S


@pytest.fixture
async def port(place: Any, serve: Any) -> AsyncIterator[int]:
    """Of the box that misbehaves."""
    await serve()
    await place.box("other")
    yield await place.box()


async def test_a_body_of_a_gibibyte_is_refused_at_once_or_after_the_limit(place, port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + b"Content-Length: 1073741824\r\n\r\n")
    async with asyncio.timeout(5):
        assert b" 413 " in await reader.readline()
    sent = 0
    try:
        while sent < 2**30:
            writer.write(b" " * 2**20)
            sent += 2**20
            async with asyncio.timeout(5):
                await writer.drain()
            if sent == 4 * 2**20:
                await _quick(place)
            if sent > 4 * MAX_BODY and reader.at_eof():
                break
    except (TimeoutError, ConnectionError):
        pass  # nobody reads it
    writer.close()
    await _quick(place)


async def test_chunks_without_end_are_cut_off_at_the_limit(place, port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    for _ in range(MAX_BODY // 2**20 + 2):
        writer.write(chunk)
    async with asyncio.timeout(5):
        assert b" 413 " in await reader.readline()
    await _quick(place)
    writer.close()


async def test_headers_that_come_byte_by_byte_are_given_up(place, port, monkeypatch):
    monkeypatch.setattr(endpoint, "HEADERS_WITHIN_S", 0.3)
    async with AsyncExitStack() as stack:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
        for _, writer in slow:
            stack.callback(writer.close)
            writer.write(HEAD + b"X-Slow: ")
        await _quick(place)
        async with asyncio.timeout(5):
            assert (await place.say()).status == 200  # once the slow ones are gone
        for reader, _ in slow:
            async with asyncio.timeout(5):
                assert await reader.read() == b""


async def test_a_body_that_comes_byte_by_byte_is_given_up(place, port, monkeypatch):
    monkeypatch.setattr(endpoint, "BODY_WITHIN_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + b"Content-Length: 100\r\n\r\n{")
    await _quick(place)
    async with asyncio.timeout(5):
        assert b" 408 " in await reader.readline()
    writer.close()


async def test_an_idle_connection_is_not_closed_for_its_first_slowness_after_it_has_asked(place, port, monkeypatch):
    monkeypatch.setattr(endpoint, "HEADERS_WITHIN_S", 0.2)
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        async with asyncio.timeout(5):
            assert b" 200 " in await reader.readline()
            while b"hi" not in await reader.readline():
                if reader.at_eof():
                    break
                if b"token: hi" in bytes(reader._buffer):  # type: ignore[attr-defined]
                    await reader.read(65536)
                    break
        await asyncio.sleep(0.4)
    writer.close()


async def test_lines_that_are_no_http_do_not_stop_the_others(place, port):
    for data in (
        b"\0" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        async with asyncio.timeout(5):
            try:
                assert b" 400 " in await reader.readline()
            except ConnectionResetError:
                pass  # it was said, and closed with bytes unread
        writer.close()
    await _quick(place)


async def test_ten_thousand_connections_cost_the_others_nothing(place, port):
    with ExitStack() as stack:
        for at in range(10_000):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            if at % 500 == 0:
                await asyncio.sleep(0)  # the gateway may accept what it will
        await _quick(place)
        assert place.gateway._boxes["box"].endpoint._open == MAX_CONNECTIONS
    await _quick(place)
    async with asyncio.timeout(10):
        assert (await place.say()).status == 200
