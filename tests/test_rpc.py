"""rpc: what a caller and a handler may rely on, on both kinds of link."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rockroll import rpc
from rockroll.errors import ModelServiceError, PeerLost, RemoteError, RockrollError
from rockroll.rpc.frame import WINDOW
from rockroll.rpc.stream import RECEIVE


class Point(msgspec.Struct, frozen=True):
    x: int
    data: bytes


class Service:
    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.gone: list[rpc.Peer] = []
        self.go = asyncio.Event()
        self.made = 0

    async def echo(self, body: Any, peer: rpc.Peer) -> Any:
        return body

    async def point(self, body: Point, peer: rpc.Peer) -> Point:
        return Point(body.x + 1, body.data[::-1])

    async def refuse(self, body: Any, peer: rpc.Peer) -> None:
        raise ModelServiceError("too long: 10 tokens", status=400, code="context_length_exceeded")

    async def bug(self, body: Any, peer: rpc.Peer) -> None:
        raise KeyError("nothing")

    async def hang(self, body: Any, peer: rpc.Peer) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def count(self, n: int, peer: rpc.Peer) -> AsyncIterator[int]:
        try:
            for i in range(n):
                yield i
                await asyncio.sleep(0)
        finally:
            self.cancelled.set()

    async def endless(self, body: Any, peer: rpc.Peer) -> AsyncIterator[int]:
        while True:
            yield self.made
            self.made += 1

    async def add_up(self, body: Any, peer: rpc.Peer, parts: rpc.Parts) -> Any:
        self.started.set()
        try:
            return [body, sum([part async for part in parts.of(int)])]
        finally:
            self.cancelled.set()

    async def take_three(self, body: Any, peer: rpc.Peer, parts: rpc.Parts) -> int:
        taken = 0
        async for _ in parts.of(bytes):
            taken += 1
            self.started.set()
            await self.go.wait()
            if taken == 3:
                break
        return taken

    async def refuse_parts(self, body: Any, peer: rpc.Peer, parts: rpc.Parts) -> None:
        async for _ in parts.of(int):
            await self.refuse(body, peer)

    async def doubles(self, times: int, peer: rpc.Peer, parts: rpc.Parts) -> AsyncIterator[int]:
        try:
            async for part in parts.of(int):
                yield part * times
            yield -1
        finally:
            self.cancelled.set()

    async def whoami(self, body: Any, peer: rpc.Peer) -> int | None:
        return peer.pid


@pytest.fixture(params=["unix", "ipc"])
async def link(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Service, rpc.Client, rpc.Server]]:
    service = Service()
    names = ["echo", "point", "refuse", "bug", "hang", "count", "whoami"]
    names += ["endless", "add_up", "take_three", "refuse_parts", "doubles"]
    server = rpc.Server(
        f"{request.param}://{tmp_path}/s",
        {name: getattr(service, name) for name in names},
        types={"point": Point},
        on_disconnect=service.gone.append,
    )
    await server.start()
    client = await rpc.connect(server.address)
    yield service, client, server
    await client.close()
    await server.close()
    assert not (tmp_path / "s").exists()


async def test_reply_has_the_type_asked_for(link: Any) -> None:
    _, client, _ = link
    assert await client.call("echo", {"a": [1, b"\x00\xff", None]}) == {"a": [1, b"\x00\xff", None]}
    assert await client.call("point", Point(1, b"ab"), type=Point) == Point(2, b"ba")


async def test_an_error_keeps_its_class_and_fields(link: Any) -> None:
    _, client, _ = link
    with pytest.raises(ModelServiceError, match="too long") as caught:
        await client.call("refuse")
    assert caught.value.fields == {"status": 400, "code": "context_length_exceeded"}


async def test_a_bug_in_a_handler_reaches_the_caller(link: Any) -> None:
    _, client, _ = link
    with pytest.raises(RemoteError, match="bug: KeyError"):
        await client.call("bug")
    with pytest.raises(RemoteError, match="point"):
        await client.call("point", {"x": "no"})
    with pytest.raises(RockrollError, match="no method 'nothing'"):
        await client.call("nothing")


async def test_cancelling_a_call_cancels_its_handler(link: Any) -> None:
    service, client, _ = link
    call = asyncio.ensure_future(client.call("hang"))
    await service.started.wait()
    call.cancel()
    await asyncio.wait_for(service.cancelled.wait(), 5)
    with pytest.raises(TimeoutError):
        await client.call("hang", timeout=0.01)


async def test_a_stream_comes_in_order_and_leaving_it_ends_the_generator(link: Any) -> None:
    service, client, _ = link
    assert [i async for i in client.stream("count", 1000)] == list(range(1000))
    service.cancelled.clear()
    stream = client.stream("count", 10**9)
    async for i in stream:
        if i == 3:
            break
    await stream.aclose()
    await asyncio.wait_for(service.cancelled.wait(), 5)


async def test_many_calls_at_once(link: Any) -> None:
    _, client, _ = link
    assert await asyncio.gather(*(client.call("echo", i) for i in range(500))) == list(range(500))


async def test_large_messages_pass(link: Any) -> None:
    _, client, _ = link
    data = os.urandom(5_000_000)
    assert await client.call("echo", data) == data


async def test_calls_under_way_fail_when_the_server_goes(link: Any) -> None:
    service, client, server = link
    call = asyncio.ensure_future(client.call("hang"))
    await service.started.wait()
    await server.close()
    with pytest.raises(PeerLost):
        await asyncio.wait_for(call, 5)


async def test_a_zeromq_client_may_come_before_its_server_and_outlives_it(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/s"
    service = Service()
    client = await rpc.connect(address)
    early = asyncio.ensure_future(client.call("echo", 1))
    for _ in range(2):
        server = rpc.Server(address, {"echo": service.echo, "hang": service.hang})
        await server.start()
        assert await asyncio.wait_for(early, 5) == 1
        held = asyncio.ensure_future(client.call("hang"))
        await service.started.wait()
        await server.close()
        with pytest.raises(PeerLost):
            await asyncio.wait_for(held, 5)
        service.started.clear()
        early = asyncio.ensure_future(client.call("echo", 1))
    early.cancel()
    await client.close()


async def test_a_unix_server_knows_its_peer_and_hears_it_leave(tmp_path: Path) -> None:
    service = Service()
    left = asyncio.Event()
    server = rpc.Server(f"unix://{tmp_path}/s", {"whoami": service.whoami}, on_disconnect=lambda peer: left.set())
    await server.start()
    client = await rpc.connect(server.address)
    assert await client.call("whoami") == os.getpid()
    await client.close()
    await asyncio.wait_for(left.wait(), 5)
    await server.close()


async def test_a_socket_file_left_by_a_killed_server_is_taken_over_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = rpc.Server(f"unix://{path}", {})
    await first.start()
    with pytest.raises(RockrollError, match="cannot listen"):
        await rpc.Server(f"unix://{path}", {}).start()
    await first.close()
    path.touch()
    second = rpc.Server(f"unix://{path}", {})
    await second.start()
    await second.close()


async def test_an_address_where_nothing_listens_says_so(tmp_path: Path) -> None:
    with pytest.raises(PeerLost, match="nothing answers at unix://"):
        await rpc.connect(f"unix://{tmp_path}/none")


async def test_an_address_of_no_known_kind_is_refused() -> None:
    with pytest.raises(RockrollError, match="an rpc address is unix://PATH"):
        await rpc.connect("nonsense")


# ---- parts: what a caller sends after the body ---------------------------------------------------------------------


async def test_parts_come_in_order_and_the_reply_after_them(link: Any) -> None:
    _, client, _ = link

    async def numbers() -> AsyncIterator[int]:
        for i in range(1000):
            yield i

    assert await client.call("add_up", "start", parts=numbers()) == ["start", sum(range(1000))]
    assert await client.call("echo", 1) == 1


async def test_a_slow_taker_holds_the_sender_of_parts(link: Any) -> None:
    service, client, _ = link
    made = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield b"x" * 1000

    call = asyncio.ensure_future(client.call("take_three", parts=endless()))
    await service.started.wait()
    assert await client.call("echo", "others are not held") == "others are not held"
    await asyncio.sleep(0.05)  # time in which a sender that is not held would send thousands
    assert made <= WINDOW + 1
    service.go.set()
    assert await call == 3


async def test_a_slow_reader_holds_the_sender_of_a_stream(link: Any) -> None:
    service, client, _ = link
    stream = client.stream("endless")
    assert await anext(stream) == 0
    await asyncio.sleep(0.05)  # time in which a sender that is not held would send thousands
    assert service.made <= WINDOW + 2
    assert [await anext(stream) for _ in range(3 * WINDOW)] == list(range(1, 3 * WINDOW + 1))
    await stream.aclose()


async def test_an_answer_before_the_last_part_ends_the_sending(link: Any) -> None:
    _, client, _ = link

    async def endless() -> AsyncIterator[int]:
        while True:
            yield 1

    with pytest.raises(ModelServiceError, match="too long"):
        await client.call("refuse_parts", parts=endless())
    with pytest.raises(RemoteError, match="positional argument"):  # a method that takes no parts
        await client.call("echo", parts=endless())


async def test_what_the_maker_of_parts_raises_reaches_the_caller_and_cancels_the_handler(link: Any) -> None:
    service, client, _ = link

    async def broken() -> AsyncIterator[int]:
        yield 1
        await service.started.wait()
        raise RockrollError("the file is gone")

    with pytest.raises(RockrollError, match="the file is gone"):
        await client.call("add_up", parts=broken())
    await asyncio.wait_for(service.cancelled.wait(), 5)


async def test_a_stream_and_its_parts_go_side_by_side_until_both_have_ended(link: Any) -> None:
    _, client, _ = link

    async def numbers() -> AsyncIterator[int]:
        for n in range(100):
            if n:
                await answered.wait()  # each is sent after the answer to the one before
                answered.clear()
            yield n

    answered, seen = asyncio.Event(), []
    async with asyncio.timeout(20):
        async for item in client.stream("doubles", 3, parts=numbers()):
            seen.append(item)
            answered.set()
    assert seen == [n * 3 for n in range(100)] + [-1]
    assert client._pending == {}


async def test_leaving_a_stream_ends_the_sending_and_what_the_sender_raises_is_raised(link: Any) -> None:
    service, client, _ = link

    async def endless() -> AsyncIterator[int]:
        n = 0
        while True:
            yield (n := n + 1)
            await asyncio.sleep(0)

    async def broken() -> AsyncIterator[int]:
        yield 1
        await answered.wait()  # else the handler may be cancelled before it begins
        raise RockrollError("no more of it")

    answered = asyncio.Event()
    async with asyncio.timeout(20):
        stream = client.stream("doubles", 2, parts=endless())
        async for _ in stream:
            break
        await stream.aclose()
        await service.cancelled.wait()
        service.cancelled.clear()
        with pytest.raises(RockrollError, match="no more of it"):
            async for item in client.stream("doubles", 2, parts=broken()):
                assert item == 2
                answered.set()
        await service.cancelled.wait()
        with pytest.raises(ModelServiceError, match="too long"):
            async for _ in client.stream("refuse_parts", 2, parts=endless()):
                pass
    assert client._pending == {}


async def test_frames_of_every_size_pass_whole_and_in_order(tmp_path: Path) -> None:
    service = Service()
    server = rpc.Server(f"unix://{tmp_path}/s", {"echo": service.echo})
    await server.start()
    client = await rpc.connect(server.address)
    sizes = [0, 1, 70_000, RECEIVE - 20, RECEIVE - 8, RECEIVE, RECEIVE + 1, 3 * RECEIVE, 5, 2_000_000, 9]
    sent = [bytes([i]) * size for i, size in enumerate(sizes)] * 3
    assert await asyncio.gather(*(client.call("echo", data) for data in sent)) == sent
    await client.close()
    await server.close()
