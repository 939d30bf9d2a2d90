"""Lines: whatever is lost on the way, each frame arrives once and in order; a hub joins who dialled it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rockroll.errors import PeerLost, RockrollError
from rockroll.rpc.client import Client
from rockroll.rpc.dial import connect
from rockroll.rpc.frame import MAX_MESSAGE
from rockroll.rpc.keys import public_of
from rockroll.rpc.line import Line, Lines
from rockroll.rpc.server import Peer, Server
from rockroll.rpc.switch import Switch
from rockroll.rpc.trunk import HUB, Trunk, address_through


class Wire:
    """Two ends, and messages on their way, some of which are lost."""

    def __init__(self, seed: int, loss: float) -> None:
        self.random, self.loss = random.Random(seed), loss
        self.on_the_way: list[tuple[Lines, bytes, bytes, bytes]] = []
        self.got: dict[str, list[bytes]] = {"a": [], "b": []}
        self.ended: list[str] = []
        self.answering: Line | None = None
        self.a = Lines(lambda to, head, data: self.put(self.b, b"a", head, data))
        self.b = Lines(lambda to, head, data: self.put(self.a, b"b", head, data), self.accept)

    def accept(self, _peer: bytes, line: Line) -> None:
        self.answering = line
        line.on_frame, line.on_ended = self.got["b"].append, lambda: self.ended.append("b")

    def open(self) -> Line:
        return self.a.open(b"b", self.got["a"].append, lambda: self.ended.append("a"))

    def put(self, end: Lines, source: bytes, head: bytes, data: bytes) -> None:
        if self.random.random() >= self.loss:
            self.on_the_way.append((end, source, head, data))

    def carry(self) -> None:
        while self.on_the_way:
            end, source, head, data = self.on_the_way.pop(0)
            end.heard(source, head, data)


def test_a_frame_that_no_connection_would_carry_is_refused_and_not_sent_for_ever() -> None:
    wire = Wire(0, 0)
    line = wire.open()
    with pytest.raises(RockrollError, match=f"may have {MAX_MESSAGE} bytes, this one has {MAX_MESSAGE + 1}"):
        line.send(bytes(MAX_MESSAGE + 1))
    line.send(b"small")
    wire.carry()
    assert wire.got["b"] == [b"small"]


@pytest.mark.parametrize("seed", range(20))
def test_every_frame_arrives_once_and_in_order_whatever_is_lost(seed: int) -> None:
    wire = Wire(seed, 0.3)
    line = wire.open()
    sent: dict[str, list[bytes]] = {"a": [], "b": []}
    for number in range(200):
        frame = str(number).encode()
        line.send(frame)
        sent["b"].append(frame)
        if wire.answering is not None:
            wire.answering.send(frame)
            sent["a"].append(frame)
        if wire.random.random() < 0.3:
            wire.carry()
    for _ in range(400):
        wire.a.tick()
        wire.b.tick()
        wire.carry()
    assert wire.got["b"] == sent["b"]
    assert wire.got["a"] == sent["a"]
    assert wire.ended == []
    wire.loss = 0
    for _ in range(2):
        wire.a.tick()
        wire.b.tick()
        wire.carry()
    assert not line._kept, "what has arrived is not kept"


def test_a_line_that_the_other_side_has_given_up_ends_and_runs_nothing_again() -> None:
    wire = Wire(0, 0)
    line = wire.open()
    line.send(b"1")
    wire.carry()
    assert wire.answering is not None
    wire.answering.send(b"one")
    wire.carry()
    wire.b.end(b"a")
    line.send(b"2")
    wire.carry()
    assert wire.ended == ["a"]
    assert wire.got["b"] == [b"1"]


def test_another_line_between_the_same_two_ends_the_first() -> None:
    wire = Wire(0, 0)
    wire.open().send(b"1")
    wire.carry()
    wire.open().send(b"2")
    wire.carry()
    assert wire.ended == ["b"]
    assert wire.got["b"] == [b"1", b"2"]


class Echo:
    """A server behind a trunk."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = asyncio.Event()
        self.server = Server("trunk", {"echo": self.echo, "count": self.count, "slow": self.slow})

    async def echo(self, body: Any, _peer: Peer) -> Any:
        self.calls += 1
        return body

    async def slow(self, body: Any, _peer: Peer) -> Any:
        self.calls += 1
        await self.go.wait()
        return body

    async def count(self, n: int, _peer: Peer) -> AsyncIterator[int]:
        for number in range(n):
            yield number
            await asyncio.sleep(0)

    def accept(self, name: bytes, line: Line) -> None:
        peer = self.server.join(name.hex(), line)
        line.on_frame = lambda data: self.server.hear(peer, data)
        line.on_ended = lambda: self.server.hush(peer)


def client(trunk: Trunk, to: bytes) -> Client:
    line = trunk.line(to, lambda data: made.hear(data), lambda: made.fail(PeerLost("ended")))
    made = Client.over("echo", line, lambda: trunk.end(to))
    return made


@pytest.fixture
async def switch(tmp_path: Path) -> AsyncIterator[Switch]:
    hub = Echo()
    switch = Switch("tcp://127.0.0.1:0", tmp_path / "key", on_line=hub.accept)
    switch.start()
    yield switch
    switch.close()
    await hub.server.close()


async def another_at(address: str, key: Path) -> Switch:
    """A hub where one was: ZeroMQ gives the port back a moment after the socket was closed."""
    async with asyncio.timeout(10):
        while True:
            again = Switch(address, key, on_line=lambda _peer, _line: None)
            try:
                again.start()
            except RockrollError:
                await asyncio.sleep(0.05)
            else:
                return again


async def test_calls_and_streams_go_through_a_hub_to_whoever_dialled_it(switch: Switch, tmp_path: Path) -> None:
    public = public_of(tmp_path / "key")
    echo = Echo()
    node = Trunk(switch.address, public, on_line=echo.accept)
    mine = Trunk(switch.address, public)
    await asyncio.gather(node.open(), mine.open())
    there, hub = client(mine, node.name), client(mine, HUB)
    assert await there.call("echo", "x" * 100_000) == "x" * 100_000
    assert [item async for item in there.stream("count", 100)] == list(range(100))
    assert await hub.call("echo", 1) == 1
    await asyncio.gather(there.close(), hub.close(), echo.server.close())
    node.close()
    mine.close()


async def test_a_hub_that_is_started_anew_costs_no_call_between_two_processes(switch: Switch, tmp_path: Path) -> None:
    key, address = tmp_path / "key", switch.address
    echo = Echo()
    node = Trunk(address, public_of(key), on_line=echo.accept)
    mine = Trunk(address, public_of(key))
    await asyncio.gather(node.open(), mine.open())
    there = client(mine, node.name)
    waiting = asyncio.ensure_future(there.call("slow", "answer"))
    while not echo.calls:
        await asyncio.sleep(0.01)
    switch.close()
    echo.go.set()  # the answer is lost
    another = asyncio.ensure_future(there.call("echo", 2))
    again = await another_at(address, key)
    async with asyncio.timeout(10):
        assert await waiting == "answer"
        assert await another == 2
    assert echo.calls == 2, "nothing was done twice"
    again.close()
    await asyncio.gather(there.close(), echo.server.close())
    node.close()
    mine.close()


async def test_without_the_key_nobody_is_let_in(switch: Switch, tmp_path: Path) -> None:
    stranger = Trunk(switch.address, "0" * 40)
    with pytest.raises(PeerLost, match="with that key"):
        await stranger.open(within=0.5)
    assert switch.heard == {}


async def test_an_address_through_a_hub_serves_without_a_port_and_outlives_the_hub(
    switch: Switch, tmp_path: Path
) -> None:
    key, hub = tmp_path / "key", switch.address
    address = address_through(hub, public_of(key))
    echo = Echo()
    server = Server(address, {"echo": echo.echo, "slow": echo.slow, "count": echo.count})
    caller = await connect(address)  # may come first
    await server.start()
    assert await caller.call("echo", "hello") == "hello"
    assert public_of(key) not in caller.address, "what errors say is no key"
    waiting = asyncio.ensure_future(caller.call("slow", "answer"))
    while echo.calls < 2:
        await asyncio.sleep(0.01)
    switch.close()
    echo.go.set()
    again = await another_at(hub, key)
    async with asyncio.timeout(10):
        assert await waiting == "answer"
    await caller.close()
    await server.close()
    again.close()
