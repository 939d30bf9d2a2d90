"""Further model endpoints of a box: one for each agent that works in it beside the first.

In: a running box and a number. Out: a socket of its own in the box, served by the gateway under a name of its own, so
that each has its route, its budget and its calls. Leaves routes to the gateway. They end with their route, with the
box's init and with the box: nothing binds them again.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import socket as Socket

from rockroll.errors import UsageError
from rockroll.model_service.gateway import Gateway

MOST = 16
"""Endpoints of one box: each may have 16 calls and 64 connections under way on the host."""


def seat_name(sandbox_id: str, seat: int) -> str:
    """What the gateway calls that endpoint of that box."""
    return f"{sandbox_id}/{seat}" if seat else sandbox_id


class Seats:
    """listen: a socket in a box, by the box's id and a port. first: the port of the endpoint that every box has. port:
    of the next one; the others are at those after it."""

    def __init__(self, gateway: Gateway, listen: Callable[[str, int], Socket], first: int, port: int) -> None:
        self._gateway, self._listen, self._first, self._port = gateway, listen, first, port
        self._open: dict[str, set[int]] = {}

    async def open(self, sandbox_id: str, seat: int) -> int:
        """Its port. The same again is as it was. UsageError for a number that cannot be; SandboxLost, HostError."""
        if not 0 <= seat < MOST:
            raise UsageError(f"a box has model endpoints 0 to {MOST - 1}; got {seat}")
        seats = self._open.setdefault(sandbox_id, set())
        port = self._port + seat - 1 if seat else self._first
        if seat and seat not in seats:
            sock = self._listen(sandbox_id, port)
            seats.add(seat)
            await self._gateway.attach(seat_name(sandbox_id, seat), sock)
        return port

    def has(self, sandbox_id: str, seat: int) -> bool:
        return seat in self._open.get(sandbox_id, ())

    def close(self, sandbox_id: str, seat: int) -> None:
        """Its socket, its calls and its route end."""
        self._open.get(sandbox_id, set()).discard(seat)
        self._gateway.forget(seat_name(sandbox_id, seat))

    def gone(self, sandbox_id: str) -> None:
        """All of that box end."""
        for seat in self._open.pop(sandbox_id, ()):
            self._gateway.forget(seat_name(sandbox_id, seat))
