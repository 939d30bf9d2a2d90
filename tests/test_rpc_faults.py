"""rpc where the other side is silent, absent or says nonsense: an error for the caller, and nothing else suffers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rockroll import rpc
from rockroll.errors import HostError, PeerLost, RockrollError, UsageError
from rockroll.rpc.client import Client
from rockroll.rpc.frame import CALL, Frame
from rockroll.rpc.keys import make
from rockroll.rpc.server import Peer, Server

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("message"), inner, max_size=4),
    max_leaves=12,
)
failures = st.builds(
    lambda name, message, fields: {"name": name, "message": message, "fields": fields},
    st.sampled_from(["RockrollError", "PeerLost", "x"]),
    st.text(),
    st.dictionaries(st.text(), values, max_size=3),
)
frames = (
    st.binary()
    | values.map(msgspec.msgpack.encode)
    | st.builds(
        lambda *fields: msgspec.msgpack.encode(fields),
        st.integers(0, 12),
        st.integers(0, 3) | values,
        st.sampled_from(["echo", "count", "nothing"]) | values,
        values | failures,
    )
)


class Sink:
    """A link that leads nowhere."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    async def drain(self) -> None:
        pass


async def echo(body: Any, peer: Peer) -> Any:
    return body


async def count(body: Any, peer: Peer) -> AsyncIterator[int]:
    for i in range(3):
        yield i


@given(st.lists(frames, max_size=6))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_break_the_server_or_leave_a_task(data: list[bytes]):
    logging.getLogger("rockroll.rpc.server").setLevel(logging.CRITICAL)

    async def feed() -> None:
        server = Server("ipc://nowhere", {"echo": echo, "count": count}, types={"echo": dict[str, int]})
        peer = Peer(id="p", link=Sink())
        server._peers["p"] = peer
        for each in data:
            server._on_frame(peer, each)
        await asyncio.sleep(0)
        server._on_frame(peer, msgspec.msgpack.encode((CALL, 99, "echo", {"a": 1})))
        await asyncio.wait_for(peer.tasks[99], 1)
        assert msgspec.msgpack.decode(peer.link.sent[-1])[3] == {"a": 1}  # type: ignore[attr-defined]
        await server.close()
        assert not peer.tasks and not peer.parts and not peer.credits
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(feed())


@given(st.lists(frames, max_size=6))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_break_the_client(data: list[bytes]):
    logging.getLogger("rockroll.rpc.client").setLevel(logging.CRITICAL)

    async def feed() -> None:
        client = Client("unix://nowhere")
        client._link = Sink()
        call = asyncio.create_task(client.call("echo"))
        await asyncio.sleep(0)
        for each in data:
            client._on_frame(each)
        await client.close()
        with pytest.raises((RockrollError, msgspec.MsgspecError)):
            await call
            raise PeerLost("it was answered")
        assert not client._pending

    asyncio.run(feed())


def test_ids_have_bounds():
    for wrong in ((CALL, -1, "m", None), (CALL, 1, "m" * 129, None)):
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode(wrong), type=Frame)


async def test_a_call_with_a_timeout_to_a_server_that_is_not_there_says_so(tmp_path):
    client = await rpc.connect(f"ipc://{tmp_path}/none")
    with pytest.raises(PeerLost, match="nothing answered at ipc"):
        await client.call("echo", timeout=0.05)
    assert not client._pending
    await client.close()


async def test_a_server_that_is_there_and_slow_is_a_timeout(tmp_path):
    async def slow(body: Any, peer: Peer) -> None:
        await asyncio.Event().wait()

    server = Server(f"ipc://{tmp_path}/s", {"slow": slow, "echo": echo})
    await server.start()
    client = await rpc.connect(server.address)
    assert await client.call("echo", 1, timeout=5) == 1
    with pytest.raises(TimeoutError):
        await client.call("slow", timeout=0.05)
    await client.close()
    await server.close()


async def test_a_server_whose_packets_stop_without_a_word_is_lost_within_three_seconds(unused_tcp_port):
    """A proxy between them goes on holding both connections and drops every byte."""

    async def slow(body: Any, peer: Peer) -> None:
        await asyncio.Event().wait()

    server = Server(f"tcp://127.0.0.1:{unused_tcp_port}", {"slow": slow, "echo": echo})
    await server.start()
    dropped = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not dropped.is_set():
                writer.write(data)

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
        tasks.update(asyncio.create_task(pump(*ends)) for ends in ((reader, back), (there, writer)))

    proxy = await asyncio.start_server(between, "127.0.0.1", 0)
    client = await rpc.connect(f"tcp://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    assert await client.call("echo", 1, timeout=5) == 1
    call = asyncio.create_task(client.call("slow"))
    await client.call("echo", 1, timeout=5)
    dropped.set()
    async with asyncio.timeout(3):
        with pytest.raises(PeerLost):
            await call
    await client.close()
    proxy.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await server.close()


async def test_over_tcp_only_who_has_the_key_is_answered(unused_tcp_port, tmp_path):
    server = Server(f"tcp://127.0.0.1:{unused_tcp_port}", {"echo": echo}, key=tmp_path / "k" / "rpc.key")
    await server.start()
    assert (tmp_path / "k" / "rpc.key").stat().st_mode & 0o777 == 0o600
    client = await rpc.connect(server.address, tmp_path / "k" / "rpc.key")
    assert await client.call("echo", 1, timeout=5) == 1
    make(tmp_path / "other.key")
    for wrong in (None, tmp_path / "other.key"):
        stranger = await rpc.connect(server.address, wrong)
        with pytest.raises(PeerLost):
            await stranger.call("echo", 1, timeout=0.2)
        await stranger.close()
    assert await client.call("echo", 2, timeout=5) == 2
    await client.close()
    await server.close()


async def test_a_tcp_link_that_others_can_reach_has_the_homes_key_or_is_refused(unused_tcp_port, tmp_path, monkeypatch):
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path))
    with pytest.raises(HostError, match="copy it from the host where the run is"):
        await rpc.connect("tcp://192.0.2.1:5000")
    server = Server(f"tcp://0.0.0.0:{unused_tcp_port}", {"echo": echo})
    await server.start()
    client = await rpc.connect(f"tcp://127.0.0.1:{unused_tcp_port}", tmp_path / "rpc.key")
    assert await client.call("echo", 1, timeout=5) == 1
    await client.close()
    await server.close()
    (tmp_path / "rpc.key").chmod(0o644)
    with pytest.raises(HostError, match="chmod 600"):
        await rpc.connect("tcp://192.0.2.1:5000")
    with pytest.raises(UsageError, match="tcp:// only"):
        await rpc.connect(f"ipc://{tmp_path}/x", tmp_path / "rpc.key")
