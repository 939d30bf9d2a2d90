"""What every HTTP server of rockroll does alike: a socket that is bound or an error that helps, and uvicorn on it.

In: a host and a port. Out: a listening socket, its URL; a server whose signals are the caller's. Leaves the application
to the caller.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterator

import uvicorn

from rockroll.errors import HostError, UsageError

DEAD_AFTER_S = 30
"""A peer whose host is gone is given up after this."""


class Server(uvicorn.Server):
    """ready: called once it answers. Signals are the caller's."""

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


def url_of(listening: socket.socket) -> str:
    address = listening.getsockname()
    name = f"[{address[0]}]" if listening.family == socket.AF_INET6 else address[0]
    return f"http://{name}:{address[1]}"


def listen(host: str, port: int) -> socket.socket:
    """UsageError for a host that is none of this machine's, HostError for a port that is taken."""
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
