"""The HTTP server's life: `await serve(…)` listens, tells where, and returns when it is told to end.

In: a host, a port, a token. Out: answers, until SIGTERM or Ctrl-C. Leaves the application to app.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterable, Iterator

import uvicorn
from fastapi import APIRouter

from rockroll.errors import HostError, UsageError
from rockroll.sandbox.http.app import create_app
from rockroll.sandbox.http.gate import LOOPBACK
from rockroll.sandbox.http.node_link import NodeLink

KEEP_ALIVE_S = 75
"""Longer than clients keep an idle connection: the server must not close one as a request comes in."""
DEAD_AFTER_S = 30
"""A peer whose host is gone is given up after this."""
ENDING_S = 3
"""Seconds that requests under way have to end; a lease has no other end."""


async def serve(
    host: str, port: int, token: str | None, ready: Callable[[str], None], *, routers: Iterable[APIRouter] = ()
) -> None:
    """ready: told the base URL once it answers. UsageError, HostError where it cannot listen."""
    local = is_loopback(host)
    if token is None and not local:
        raise UsageError(
            f"--host {host} can be reached from other machines, and without a token all of them could run programs"
            " here: leave --no-token out, or serve on 127.0.0.1"
        )
    listening = _listen(host, port)
    address = listening.getsockname()
    name = f"[{address[0]}]" if listening.family == socket.AF_INET6 else address[0]
    node = NodeLink()
    await node.call("node.info", {})  # a host that can have no sandboxes says so now
    app = create_app(node, token=token, hosts={*LOOPBACK, host} if local else None, routers=routers)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=ENDING_S,
        lifespan="on",
    )
    server = _Server(config, lambda: ready(f"http://{name}:{address[1]}"))
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        app.state.ending.set()
        await serving


class _Server(uvicorn.Server):
    """Signals are the caller's."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host: an address or name of this machine; got {host!r} ({error})") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Every connection inherits these: a client whose machine vanished is noticed, and its lease ends.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_AFTER_S // 2)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_S * 1000)
        listening.bind(address)
        listening.listen(2048)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise HostError(
            f"cannot listen on {host}:{port}: {error.strerror}; is another server using it? Choose another --port"
        ) from None
    return listening
