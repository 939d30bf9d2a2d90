"""What addresses a name has, as this host sees it.

In: a name and a port. Out: addresses, in the order to try them. Leaves what may be reached to network.py. A sandbox
chooses the names and when they are asked for, so no lookup takes a thread that the node needs for something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

from rockroll.sandbox.network import Address, plain

AT_ONCE = 4
"""Lookups of one sandbox under way; a name server that does not answer holds up that sandbox only."""
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Raises OSError where the name has no address."""


class Resolver:
    """The lookups of one sandbox, by the host's own resolver."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, name: str, port: int) -> list[Address]:
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Address]] = loop.create_future()
        found.add_done_callback(self._done)

        def look_up() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                try:
                    loop.call_soon_threadsafe(found.set_result, _look_up(name, port))
                except OSError as error:
                    loop.call_soon_threadsafe(found.set_exception, error)

        # A daemon: the end of the node waits for no name server.
        threading.Thread(target=look_up, name="lookup", daemon=True).start()
        return await asyncio.shield(found)  # a thread cannot be stopped: its slot is taken until it has ended

    def _done(self, found: asyncio.Future[list[Address]]) -> None:
        self._slots.release()
        if not found.cancelled():
            found.exception()  # whoever asked may have gone


def _look_up(name: str, port: int) -> list[Address]:
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(str(error)) from None
    places = [str(place[0]) for *_, place in found]
    return list(dict.fromkeys(plain(ip_address(place)) for place in places if "%" not in place))


def is_own(address: Address) -> bool:
    """Whether the address is one of this host's: what it would be reached from is the address itself. Sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
            return ip_address(probe.getsockname()[0]) == address
        except OSError:
            return False
