"""The way to this home's node: a process of its own that holds the sandboxes, started by whoever needs it first.

In: the home ($ROCKROLL_HOME). Out: `connect_node()`, one rpc.Client for each event loop. Leaves what the node does to
`rockroll.placement.node` (named here as a module to run: this room imports nothing above it).

    nothing answers ──► lock home/node/start.lock ──► still nothing ──► start the process, pipe in hand
                                                                             │ "ready" on the pipe ──► connect
                                                                             └ end of file: it died ──► HostError + log
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from rockroll import home, rpc
from rockroll.errors import HostError, PeerLost
from rockroll.sandbox import where
from rockroll.sandbox.container import runtime
from rockroll.sandbox.where import Hub, Place, Server
from rockroll.sandbox.wire import Empty, NodeInfo

if TYPE_CHECKING:
    from rockroll.sandbox.cluster.client import HubNode
    from rockroll.sandbox.http.client import HttpNode

    Node = rpc.Client | HttpNode | HubNode
    """What clients of sandboxes talk to: `call`, `stream` and `closed` are the same on both."""

NODE_MODULE = "rockroll.placement.node"
LOG_TAIL = 2000
"""Bytes of the node's log that go into the error when it dies at start."""


class _Shared:
    """What one event loop has: at most one client of each place, and a lock so that two tasks do not both make it."""

    def __init__(self) -> None:
        self.client: rpc.Client | None = None
        self.places: dict[Place, HttpNode | HubNode] = {}
        self.lock = asyncio.Lock()


_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared] = weakref.WeakKeyDictionary()


async def connect_node() -> rpc.Client:
    """The client of this home's node for this event loop; the node is started if none answers.

    Sandboxes with owner "connection" live as long as this client. HostError, with the end of the node's log, when the
    node cannot start.
    """
    shared = _loops.setdefault(asyncio.get_running_loop(), _Shared())
    async with shared.lock:
        client = shared.client
        if client is None or client.closed is not None:
            shared.client = client = await _connect()
        return client


async def new_connection() -> rpc.Client | HubNode:
    """A client of this home's node, or of the cluster that the environment names, that is nobody else's: for who owns
    sandboxes by it; the caller closes it."""
    hub = where.hub()
    return await _connect() if hub is None else await _connect_hub(hub)


async def connect_here() -> rpc.Client | HubNode:
    """This event loop's client of this home's node, or of the cluster that the environment names."""
    hub = where.hub()
    return await connect_node() if hub is None else await _connect_place(hub)  # type: ignore[return-value]


async def connect_to(place: Place | None, node: str | None = None) -> Node:
    """This event loop's client of a server or a cluster, or of this home's node where None.

    node: of a cluster, the client of that node alone, for what is done with a box that it holds."""
    if place is None:
        return await connect_node()
    client = await _connect_place(place)
    if node is not None and isinstance(place, Hub):
        return await client.at(node)  # type: ignore[union-attr]
    return client


async def _connect_place(place: Place) -> HttpNode | HubNode:
    shared = _loops.setdefault(asyncio.get_running_loop(), _Shared())
    client = shared.places.get(place)
    if client is not None and client.closed is None:
        return client
    async with shared.lock:
        client = shared.places.get(place)
        if client is None or client.closed is not None:
            if client is not None:
                await client.close()
            connect = _connect_server if isinstance(place, Server) else _connect_hub
            shared.places[place] = client = await connect(place)  # type: ignore[arg-type]
        return client


async def _connect_server(place: Server) -> HttpNode:
    from rockroll.sandbox.http.client import connect_server  # aiohttp is slow to import, and mostly not needed

    return await connect_server(place.base_url, place.token)


async def _connect_hub(place: Hub) -> HubNode:
    from rockroll.sandbox.cluster.client import connect_hub

    return await connect_hub(place.address, place.server_key)


async def close_node() -> None:
    """Closes this event loop's clients, if it has any: the sandboxes that they owned are then deleted."""
    shared = _loops.pop(asyncio.get_running_loop(), None)
    if shared is not None:
        for client in (shared.client, *shared.places.values()):
            if client is not None:
                await client.close()


def log_path() -> Path:
    """Where the node writes its log."""
    return home.node_dir() / "node.log"


def address_path() -> Path:
    """Where the node writes its address. It is not computed anew by each client: the place of sockets depends on the
    environment (XDG_RUNTIME_DIR), and a login shell, a cron job and `podman unshare` see three of them."""
    return home.node_dir() / "address"


def log_tail() -> str:
    """The end of the node's log: what to show when it died."""
    try:
        with log_path().open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL))
            return log.read().decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return ""


async def _connect() -> rpc.Client:
    if (client := await _greeted()) is not None:
        return client
    async with _start_lock():
        if (client := await _greeted()) is not None:  # another process started it meanwhile
            return client
        await _start()
        if (client := await _greeted()) is not None:
            return client
    raise HostError(f"the sandbox node said it was ready and then died; the end of its log:\n{log_tail()}")


async def _greeted() -> rpc.Client | None:
    """A client whose node has answered one call. A node that is just ending may accept a connection and drop it."""
    try:
        client = await rpc.connect(address_path().read_text())
    except (PeerLost, FileNotFoundError):
        return None
    try:
        await client.call("node.info", Empty(), type=NodeInfo)
    except PeerLost:
        await client.close()
        return None
    except BaseException:
        await client.close()
        raise
    return client


@contextlib.asynccontextmanager
async def _start_lock() -> AsyncIterator[None]:
    """Only one process of this home starts a node at a time. The kernel frees the lock when its holder dies."""
    with (home.node_dir() / "start.lock").open("w") as file:
        # A thread waits for the lock: a cancelled caller closes the file, and the lock goes with its last descriptor.
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


async def _start() -> None:
    """Starts the node and returns once it serves; HostError with the end of its log when it dies before that."""
    host = await asyncio.to_thread(runtime.detect)  # `podman unshare` already needs the configuration that this writes
    ready, ready_in_node = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with log_path().open("ab") as log:
            # A session of its own: Ctrl-C in the caller's terminal must not take down other people's sandboxes.
            process = await asyncio.create_subprocess_exec(
                *(*runtime.rootless_prefix(), sys.executable, "-m", NODE_MODULE),
                *("--address", home.node_address(), "--ready-fd", str(ready_in_node)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[ready_in_node],
                start_new_session=True,
                cwd=home.node_dir(),
                env={**host.environment(), "ROCKROLL_HOME": str(home.home())},
            )
    except OSError as error:
        os.close(ready)
        raise HostError(f"the sandbox node could not be started: {error}") from error
    finally:
        os.close(ready_in_node)
    try:
        said = await _read_line(ready)
    finally:
        os.close(ready)
    await process.wait()  # the node forks away from its starter, so that it is nobody's zombie
    if said != b"ready\n":
        raise HostError(f"the sandbox node died at its start; the end of {log_path()}:\n{log_tail()}")


async def _read_line(fd: int) -> bytes:
    """What the other end wrote before its newline or its death."""
    loop = asyncio.get_running_loop()
    said = b""
    while not said.endswith(b"\n"):
        readable = loop.create_future()
        loop.add_reader(fd, lambda f=readable: f.done() or f.set_result(None))
        try:
            await readable
        finally:
            loop.remove_reader(fd)
        part = os.read(fd, 64)
        if not part:
            break
        said += part
    return said
