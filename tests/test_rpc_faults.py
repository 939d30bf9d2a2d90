"""rpc where the other side is silent, absent or says nonsense: an error for the caller, and nothing else suffers."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rockroll import rpc
from rockroll.errors import HostError, PeerLost, RemoteError, RockrollError, UsageError, WireMisfit
from rockroll.rpc.client import Client
from rockroll.rpc.frame import CALL, CANCEL, HELLO, REPLY, WINDOW, WIRE, Frame, frame, hello
from rockroll.rpc.keys import make
from rockroll.rpc.server import Peer, Server
from rockroll.rpc.zeromq import HEARTBEAT_MS, SILENT_MS

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
        peer = Peer(id="p", link=Sink(), refused=None)
        server._peers["p"] = peer
        for each in data:
            server._on_frame(peer, each)
        await asyncio.sleep(0)
        peer.refused = None  # it may have said HELLO in some version
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


async def test_a_handler_whose_own_work_was_cancelled_is_an_error_for_its_caller(tmp_path):
    async def given_up(body: Any, peer: Peer) -> None:
        work = asyncio.get_running_loop().create_future()
        work.cancel()
        await work

    async def given_up_between(body: Any, peer: Peer) -> AsyncIterator[int]:
        yield 1
        await given_up(body, peer)

    server = Server(f"ipc://{tmp_path}/s", {"once": given_up, "items": given_up_between})
    await server.start()
    client = await rpc.connect(server.address)
    async with asyncio.timeout(5):
        with pytest.raises(RemoteError, match="once: what it waited for was cancelled"):
            await client.call("once")
        with pytest.raises(RemoteError, match="items: what it waited for was cancelled"):
            async for _ in client.stream("items"):
                pass
    await client.close()
    await server.close()


async def test_a_client_that_ends_while_frames_wait_for_it_costs_the_others_nothing(tmp_path, caplog):
    """Its end is noticed by sending what waits, and that is then gone."""
    server = Server(f"ipc://{tmp_path}/s", {"echo": echo})
    await server.start()
    deaf = zmq.Context.instance().socket(zmq.DEALER)
    deaf.setsockopt(zmq.LINGER, 0)
    deaf.setsockopt(zmq.RCVHWM, 1)
    deaf.connect(server.address)
    client = await rpc.connect(server.address)
    assert await client.call("echo", 1) == 1
    deaf.send(hello())
    while len(server.peers) < 2:
        await asyncio.sleep(0.01)
    (peer,) = (each for each in server.peers if each.id != server.peers[0].id)
    link: Any = peer.link
    while not link._waiting:
        peer.link.send(bytes(100_000))
    deaf.close(0)
    async with asyncio.timeout(10):
        while len(server.peers) > 1:
            await asyncio.sleep(0.01)
        assert await client.call("echo", 2) == 2
    assert not link._waiting and not [each for each in caplog.records if each.levelno >= logging.ERROR]
    await client.close()
    await server.close()


async def test_a_server_of_this_machine_that_gets_no_processor_for_a_while_is_not_lost(tmp_path):
    """Stopped for longer than a server on another machine may be silent."""
    code = (
        "import asyncio, sys; from rockroll.rpc.server import Server\n"
        "async def echo(body, peer): return body\n"
        "async def main():\n await Server(sys.argv[1], {'echo': echo}).start()\n await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, f"ipc://{tmp_path}/s")
    client = await rpc.connect(f"ipc://{tmp_path}/s")
    try:
        assert await client.call("echo", 1) == 1
        process.send_signal(signal.SIGSTOP)
        asked = asyncio.create_task(client.call("echo", 2))
        await asyncio.wait([asked], timeout=(HEARTBEAT_MS + SILENT_MS) / 1000 + 0.5)
        assert not asked.done()
        process.send_signal(signal.SIGCONT)
        assert await asyncio.wait_for(asked, 5) == 2
        asked = asyncio.create_task(client.call("echo", 3))
        process.kill()
        with pytest.raises(PeerLost):  # or it was quicker
            await asyncio.wait_for(asked, 2)
            await client.call("echo", 4, timeout=1)
    finally:
        await client.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


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


# ---- which version ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["unix", "ipc"])
@pytest.mark.parametrize("theirs", [WIRE + 1, None])
async def test_a_client_of_another_wire_version_is_refused_with_a_sentence_on_both_sides(
    scheme, theirs, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.ERROR, logger="rockroll.rpc.server")
    server = Server(f"{scheme}://{tmp_path}/s", {"echo": echo})
    await server.start()
    other = frame(HELLO, theirs, "9.9.9") if theirs else frame(CANCEL, 1)  # before there was a version
    monkeypatch.setattr("rockroll.rpc.client.hello", lambda: other)
    client = await rpc.connect(server.address)
    with pytest.raises(WireMisfit, match=f"this process speaks wire version {WIRE} .*install it on both sides"):
        await client.call("echo", 1, timeout=5)
    if theirs:
        assert f"is refused: this process speaks wire version {WIRE}" in caplog.text
        assert f"the other wire version {theirs} (rockroll 9.9.9)" in caplog.text
    await client.close()
    await server.close()


@pytest.mark.parametrize("scheme", ["unix", "ipc"])
@pytest.mark.parametrize("theirs", [WIRE + 1, None])
async def test_a_server_of_another_wire_version_fails_every_call(scheme, theirs, tmp_path, monkeypatch):
    server = Server(f"{scheme}://{tmp_path}/s", {"echo": echo})
    await server.start()
    other = frame(HELLO, theirs, "9.9.9") if theirs else frame(REPLY, 1)
    monkeypatch.setattr("rockroll.rpc.server.hello", lambda: other)
    client = await rpc.connect(server.address)
    for _ in range(2):
        with pytest.raises(WireMisfit, match="install it on both sides"):
            await client.call("echo", 1, timeout=5)
    await client.close()
    await server.close()


# ---- who is there ----------------------------------------------------------------------------------------------------

CLIENT = """
import asyncio, sys
from rockroll import rpc
async def main():
    client = await rpc.connect(sys.argv[1])
    await client.call("hang")
asyncio.run(main())
"""


async def test_a_zeromq_server_hears_of_a_killed_client_and_cancels_its_calls_and_no_others(tmp_path):
    began, cancelled, gone = asyncio.Queue[str](), asyncio.Queue[str](), asyncio.Queue[str]()

    async def hang(body: Any, peer: Peer) -> None:
        began.put_nowait(peer.id)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.put_nowait(peer.id)

    server = Server(f"ipc://{tmp_path}/s", {"hang": hang}, on_disconnect=lambda peer: gone.put_nowait(peer.id))
    await server.start()
    stays = await rpc.connect(server.address)
    call = asyncio.create_task(stays.call("hang"))
    stayed = await began.get()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CLIENT, server.address)
    killed = await began.get()
    process.kill()
    async with asyncio.timeout(3):
        assert await cancelled.get() == killed and await gone.get() == killed
    assert [peer.id for peer in server.peers] == [stayed] and not call.done()
    call.cancel()
    async with asyncio.timeout(3):
        assert await cancelled.get() == stayed
    await process.wait()
    await stays.close()
    await server.close()


async def test_a_call_to_a_server_that_is_down_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("rockroll.rpc.client.COMING_S", 0.05)
    monkeypatch.setattr("rockroll.rpc.client.BACK_S", 0.1)
    client = await rpc.connect(f"ipc://{tmp_path}/s")
    with pytest.raises(PeerLost, match="never came"):
        await asyncio.wait_for(client.call("echo", 1), 5)
    with pytest.raises(PeerLost, match="never came"):
        await asyncio.wait_for(anext(client.stream("echo", 1)), 5)
    monkeypatch.setattr("rockroll.rpc.client.COMING_S", 30.0)
    server = Server(client.address, {"echo": echo})
    await server.start()
    assert await asyncio.wait_for(client.call("echo", 1), 20) == 1, "it waits until one comes"
    await server.close()
    with pytest.raises(PeerLost):
        while True:  # until it has heard of it
            await asyncio.wait_for(client.call("echo", 1), 5)
    with pytest.raises(PeerLost, match="has not come back"):
        await asyncio.wait_for(client.call("echo", 1), 5)
    assert not client._pending and not client._waits
    await client.close()


async def test_what_was_asked_of_a_server_that_died_is_not_asked_of_the_next(tmp_path):
    heard: list[int] = []

    async def hear(body: int, peer: Peer) -> int:
        heard.append(body)
        return body

    client = await rpc.connect(f"ipc://{tmp_path}/s")
    for number in range(3):
        server = Server(client.address, {"hear": hear})
        await server.start()
        assert await client.call("hear", number, timeout=5) == number
        await server.close()
        with pytest.raises(PeerLost):
            await client.call("hear", 100 + number, timeout=0.2)
    assert heard == [0, 1, 2]
    await client.close()


async def test_a_peer_that_takes_nothing_holds_its_own_stream_and_no_others(tmp_path):
    made = 0

    async def endless(body: Any, peer: Peer) -> AsyncIterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield b"x" * 2**20

    server = Server(f"ipc://{tmp_path}/s", {"endless": endless, "echo": echo})
    await server.start()
    slow, quick = await rpc.connect(server.address), await rpc.connect(server.address)
    stream = slow.stream("endless")
    assert await anext(stream)
    for number in range(200):
        assert await quick.call("echo", number, timeout=5) == number
    assert made <= WINDOW + 2
    await stream.aclose()
    await slow.close()
    await quick.close()
    await server.close()
