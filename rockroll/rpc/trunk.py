"""A trunk: one connection that a process has dialled out to a hub, and lines through it to whoever else has.

In: the hub's address and its public key. Out: lines (line.py), to the hub itself and to any other process that it
joins; how long the hub has been silent. Leaves who is there to the hub, calls to client.py and server.py.

Every BEAT_S a beat goes to the hub and one comes back. A connection that breaks is made again, and its lines go on
where they were; `on_silent` is told once where the hub was not heard for SILENT_S, `on_back` when it is again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
from collections.abc import Callable

import zmq

from rockroll.errors import PeerLost, RockrollError
from rockroll.rpc.keys import call_with_public
from rockroll.rpc.line import BEAT, HEAD, NO_LINE, Line, Lines
from rockroll.rpc.zeromq import ZmqLink, ZmqPort

HUB = b"hub"
"""The hub's own name; that of every other process is drawn, eight bytes that begin with 1."""
BEAT_S = 1.0
SILENT_S = 3.5
"""Then whoever waits is told: 5 s after the last packet at the latest."""
FIRST_S = 10.0
"""How long a hub may take to answer at first."""
BEATING = HEAD.pack(BEAT, NO_LINE, 0, 0)
_log = logging.getLogger(__name__)


class Parts(ZmqLink):
    """Messages of several parts; those that the socket cannot take yet wait here."""

    def send_parts(self, parts: tuple[bytes, ...]) -> None:
        self._send(parts)


def address_through(hub: str, public: str) -> str:
    """An address for a server that listens nowhere: it dials out to a hub, as does who calls it. It holds the key."""
    return f"hub://{(bytes([1]) + secrets.token_bytes(7)).hex()}@{hub.removeprefix('tcp://')}/{public}"


def parsed(address: str) -> tuple[bytes, str, str]:
    """(name, the hub's address, its public key) of such an address. RockrollError where it is none."""
    place, _, public = address.removeprefix("hub://").partition("/")
    name, _, hub = place.partition("@")
    try:
        return bytes.fromhex(name), f"tcp://{hub}", public
    except ValueError:
        raise RockrollError("an address through a hub is hub://NAME@HOST:PORT/KEY") from None


class Trunk:
    """One event loop's. on_line: as Lines has it; None: nobody opens a line to this process."""

    def __init__(
        self,
        address: str,
        public: str,
        *,
        on_line: Callable[[bytes, Line], None] | None = None,
        on_silent: Callable[[], None] = lambda: None,
        on_back: Callable[[], None] = lambda: None,
        name: bytes | None = None,
    ) -> None:
        self.address, self._public = address, public
        self.name = name or b"\1" + secrets.token_bytes(7)
        self._on_silent, self._on_back = on_silent, on_back
        self._lines = Lines(self._put, on_line)
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._first: asyncio.Future[None] = self._loop.create_future()
        self.silent = False
        self._port: ZmqPort
        self._link: Parts
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, within: float | None = FIRST_S) -> None:
        """Dials; returns when the hub has answered, or at once where `within` is None. PeerLost where it does not."""
        port = self._port = ZmqPort(zmq.DEALER, self._on_message, self._there, self._gone, tells=False)
        port.sock.setsockopt(zmq.ROUTING_ID, self.name)
        port.sock.setsockopt(zmq.RECONNECT_IVL, 50)
        port.sock.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        port.sock.setsockopt(zmq.IMMEDIATE, 1)
        self._link = Parts(port)
        self._link.there = False
        try:
            call_with_public(port.sock, self._public)
            port.sock.connect(self.address)
        except zmq.ZMQError as error:
            port.close()
            raise RockrollError(f"a hub's address is tcp://HOST:PORT; got {self.address!r} ({error})") from error
        port.open()
        self._tick()
        if within is None:
            return
        try:
            async with asyncio.timeout(within):
                await self._first
        except TimeoutError:
            self.close()
            raise PeerLost(
                f"no hub answers at {self.address} with that key; is `rockroll hub` up, and the cluster file its own?"
            ) from None
        except BaseException:
            self.close()
            raise

    def line(self, peer: bytes, on_frame: Callable[[bytes], None], on_ended: Callable[[], None]) -> Line:
        """A new line to `peer`; one that was there has ended."""
        return self._lines.open(peer, on_frame, on_ended)

    def end(self, peer: bytes) -> None:
        self._lines.end(peer)

    @property
    def silence(self) -> float:
        """Seconds since the hub was heard last."""
        return self._loop.time() - self._heard_at

    def _put(self, peer: bytes, head: bytes, data: bytes) -> None:
        if self._link.there:  # else it is asked for again
            self._link.send_parts((peer, head, data))

    def _there(self) -> None:
        self._link.there = True
        self._put(HUB, BEATING, b"")
        self._lines.resume()

    def _gone(self) -> None:
        self._link.there = False
        self._link.drop()

    def _on_message(self, parts: list[bytes]) -> None:
        self._heard_at = self._loop.time()
        if not self._first.done():
            self._first.set_result(None)
        if self.silent:
            self.silent = False
            self._on_back()
        try:
            peer, head, data = parts
            self._lines.heard(peer, head, data)
        except (ValueError, struct.error) as error:
            _log.error("rpc: a message through %s cannot be read: %s", self.address, error)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(BEAT_S, self._tick)
        self._put(HUB, BEATING, b"")
        if self._link.there:
            self._lines.tick()
        if not self.silent and self._first.done() and self.silence > SILENT_S:
            self.silent = True
            self._on_silent()

    def close(self) -> None:
        """A second time it does nothing."""
        if self._timer is not None:
            self._timer.cancel()
        self._port.close()
