"""What `forward` promises: a port of a box on this host, though the box has no network and its server listens on its
own 127.0.0.1 only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from rockroll import Sandbox, SandboxConfig, rpc
from rockroll.errors import RockrollError, SandboxError, SandboxLost, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.command import Command
from rockroll.sandbox.forward import Address

SMALL = SandboxConfig(memory="128m", pids=64)
ECHO = """
import socket, sys, threading
family, host, port = getattr(socket, sys.argv[1]), sys.argv[2], int(sys.argv[3])
server = socket.create_server((host, port), family=family, backlog=512)
print("ready", flush=True)
def serve(one):
    while data := one.recv(1 << 18):
        one.sendall(data)
    one.sendall(b"end")
    one.close()
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
COUNT = """
import socket
server = socket.create_server(("127.0.0.1", 8082))
print("ready", flush=True)
one, _ = server.accept()
input()
total = 0
while data := one.recv(1 << 18):
    total += len(data)
one.sendall(str(total).encode())
"""


@pytest.fixture
async def box(node: rpc.Client) -> AsyncIterator[Sandbox]:
    async with Sandbox(SMALL) as sandbox:
        yield sandbox


async def serve(box: Sandbox, code: str, *arguments: str, stdin: bool = False) -> Command:
    """Returns when the program in the box listens."""
    command = await box.start_command(["python3", "-c", code, *arguments], stdin=stdin)
    async for _ in command.output():
        return command
    raise AssertionError(await command.wait())


async def exchanged(place: Address, *said: bytes, end: bool = True) -> bytes:
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(*place)
        for part in said:
            writer.write(part)
            await writer.drain()
        if end:
            writer.write_eof()
        try:
            return await reader.read()
        finally:
            writer.close()


@pytest.mark.parametrize(("family", "host"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
async def test_a_server_on_the_boxs_own_loopback_is_reached_and_each_way_ends_alone(
    box: Sandbox, family: str, host: str
) -> None:
    await serve(box, ECHO, family, host, "8080")
    async with box.forward(8080) as place:
        assert place.host == "127.0.0.1" and str(place) == f"127.0.0.1:{place.port}"
        assert await exchanged(place, b"a\0b", b"c") == b"a\0bcend"
        data = os.urandom(3 << 20)
        answers = await asyncio.gather(*(exchanged(place, data[n:]) for n in range(20)))
        assert answers == [data[n:] + b"end" for n in range(20)]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*place)


async def test_many_connections_at_once(box: Sandbox) -> None:
    await serve(box, ECHO, "AF_INET", "127.0.0.1", "8080")
    async with box.forward(8080) as place:
        for _ in range(3):
            answers = await asyncio.gather(*(exchanged(place, b"%d" % n) for n in range(50)))
            assert answers == [b"%dend" % n for n in range(50)]


async def test_a_server_that_does_not_read_holds_its_sender_and_nobody_else(box: Sandbox) -> None:
    command = await serve(box, COUNT, stdin=True)
    async with box.forward(8082) as place, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(*place)
        total = 64 << 20

        async def send() -> None:
            for _ in range(64):
                writer.write(bytes(1 << 20))
                await writer.drain()
            writer.write_eof()

        sending = asyncio.ensure_future(send())
        done, _ = await asyncio.wait([sending], timeout=0.5)
        assert not done, "64 MiB wait in somebody's memory"
        assert (await box.arun("echo free")).output == "free\n"
        await command.send_input(b"go\n")
        assert await reader.read() == str(total).encode()
        await sending
        writer.close()


async def test_a_port_where_nothing_listens_says_so_and_is_seen_as_a_reset(
    box: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[RockrollError] = []
    async with box.forward(8080, on_error=told.append) as place:
        with pytest.raises(ConnectionResetError):
            assert await exchanged(place, b"x") != b""
        assert [str(error) for error in told] == [
            f"port 8080 of sandbox {box.name}: nothing listens there; start the server first"
        ]
        await serve(box, ECHO, "AF_INET", "127.0.0.1", "8080")
        assert await exchanged(place, b"x") == b"xend"
    with caplog.at_level(logging.WARNING):
        async with box.forward(8081) as place:
            with contextlib.suppress(ConnectionResetError):
                await exchanged(place)
    assert "nothing listens there" in caplog.text


async def test_connections_end_with_the_server_and_with_the_box(box: Sandbox) -> None:
    server = await serve(box, ECHO, "AF_INET", "127.0.0.1", "8080")
    told: list[RockrollError] = []
    async with box.forward(8080, on_error=told.append) as place, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(*place)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await server.cancel()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() in (b"", b"end")
        writer.close()
        await box.stop()
        with pytest.raises(ConnectionResetError):
            await exchanged(place, b"x")
        assert isinstance(told[-1], SandboxLost)
        await box.start()
        await serve(box, ECHO, "AF_INET", "127.0.0.1", "8080")
        assert await exchanged(place, b"again") == b"againend"


async def test_what_is_under_way_is_broken_off_at_the_end_and_the_node_keeps_nothing(
    box: Sandbox, node: rpc.Client
) -> None:
    await serve(box, ECHO, "AF_INET", "127.0.0.1", "8080")
    pid = (await node.call("node.info", wire.Empty(), type=wire.NodeInfo)).pid
    open_before = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    async with box.forward(8080) as place:
        streams = [await asyncio.open_connection(*place) for _ in range(10)]
        for reader, writer in streams:
            writer.write(b"x")
            await reader.readexactly(1)
    for reader, writer in streams:
        with pytest.raises(ConnectionResetError):
            assert await reader.read() != b""
        writer.close()
    async with asyncio.timeout(10):
        while len(os.listdir(f"/proc/{pid}/fd")) > open_before:  # noqa: PTH208
            await asyncio.sleep(0.01)


async def test_an_idle_box_with_a_connection_is_in_use(node: rpc.Client) -> None:
    async with Sandbox(SandboxConfig(memory="128m", pids=64, idle_ttl=1)) as sandbox:
        await serve(sandbox, ECHO, "AF_INET", "127.0.0.1", "8080")
        await sandbox.arun("true")
        async with sandbox.forward(8080) as place:
            reader, writer = await asyncio.open_connection(*place)
            await asyncio.sleep(1.3)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            writer.close()


async def test_wrong_uses_say_what_is_wrong(box: Sandbox) -> None:
    for port in (0, 65536, -1):
        with pytest.raises(UsageError, match="a port is from 1 to 65535"):
            box.forward(port)
    said = r"cannot be listened at \(Address already in use\); choose another"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match=said):
        async with box.forward(8080, local=taken.getsockname()[1]):
            pass
    with pytest.raises(UsageError, match="cannot be listened at"):
        async with box.forward(8080, address="203.0.113.7"):
            pass
    with pytest.raises(SandboxError, match="was not started"):
        async with Sandbox(SMALL).forward(8080):
            pass


async def test_the_command_line_forwards_until_ctrl_c(box: Sandbox) -> None:
    await serve(box, ECHO, "AF_INET", "127.0.0.1", "8080")
    command = [sys.executable, "-m", "rockroll", "sandbox", "forward", box.id, "0:8080", "0:8081"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    assert process.stdout and process.stderr
    async with asyncio.timeout(30):
        first, second = [(await process.stdout.readline()).decode() for _ in range(2)]
        assert first.endswith(f" -> {box.name} port 8080\n") and second.endswith(" port 8081\n")
        host, _, port = first.split()[0].rpartition(":")
        assert host == "127.0.0.1"
        assert await exchanged(Address(host, int(port)), b"x") == b"xend"
        with contextlib.suppress(ConnectionResetError):
            await exchanged(Address(host, int(second.split()[0].rpartition(":")[2])))
        assert b"nothing listens there" in await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert b"Traceback" not in await process.stderr.read()


def test_blocking_code_has_it_too(node_home: object) -> None:
    from rockroll.sync import Sandbox as Blocking

    with Blocking(SMALL) as sandbox:
        command = sandbox.start_command(["python3", "-c", ECHO, "AF_INET", "127.0.0.1", "8080"])
        next(iter(command.output()))
        with sandbox.forward(8080) as place, socket.create_connection(place) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
        assert sandbox.network().network == "none"
