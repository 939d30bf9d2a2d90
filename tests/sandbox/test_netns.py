"""What listen_in promises: a socket inside the box, served from outside, and seen by nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path

import pytest

from rockroll.errors import HostError, SandboxLost
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container.podman import Podman
from rockroll.sandbox.linux import netns
from tests.conftest import IS_ROOT
from tests.sandbox.boxes import start_box

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user's node runs inside podman unshare")
PORT = 41414
SMALL = SandboxConfig(memory="64m", pids=32)
FETCH = f"import socket; s = socket.create_connection(('127.0.0.1', {PORT})); print(s.recv(100).decode())"


async def serve(listening: socket.socket, text: str) -> asyncio.Server:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text.encode())
        await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, sock=listening)


async def test_each_box_reaches_its_own_socket_and_the_host_none(podman: Podman) -> None:
    boxes = [await start_box(podman, SMALL) for _ in range(2)]
    servers = [await serve(netns.listen_in(box.pid, PORT), f"for {box.name}") for box in boxes]
    for box in boxes:
        said = await asyncio.to_thread(box.run, "python3", "-c", FETCH)
        assert said.stdout == f"for {box.name}\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", PORT))
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_the_calling_process_stays_where_it_was(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    before = os.stat("/proc/self/ns/net").st_ino
    netns.listen_in(box.pid, PORT).close()
    async with asyncio.timeout(5):
        while namespaces() != {before}:
            # An ordinary user's thread may not go back into the host's namespace: it ends, and is listed for a moment.
            assert not IS_ROOT, "a thread stayed in the box's network"
            await asyncio.sleep(0.01)


def namespaces() -> set[int]:
    """The network namespaces of this process's threads."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread of asyncio's has just ended
            found.add((task / "ns/net").stat().st_ino)
    return found


async def test_it_is_cheap_enough_to_do_at_every_start(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        netns.listen_in(box.pid, PORT).close()
        times.append(time.perf_counter() - started)
    assert min(times) < 0.01


async def test_a_port_that_is_taken_is_named(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    with netns.listen_in(box.pid, PORT), pytest.raises(HostError, match=f"127.0.0.1:{PORT} in the sandbox"):
        netns.listen_in(box.pid, PORT)


async def test_a_restarted_box_needs_a_new_socket(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    netns.listen_in(box.pid, PORT).close()
    await podman.stop(box.id)
    with pytest.raises(SandboxLost):
        netns.listen_in(box.pid, PORT)
    await podman.start(box.id)
    netns.listen_in((await podman.inspect(box.id))["State"]["Pid"], PORT).close()


def test_a_process_of_the_host_is_never_mistaken_for_a_box() -> None:
    with pytest.raises(SandboxLost):
        netns.listen_in(os.getpid(), PORT)
    mine = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of this very listing
            mine.add(str(each.readlink()))
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert not [each for each in sockets if each[1].endswith(f":{PORT:04X}") and f"socket:[{each[9]}]" in mine]
