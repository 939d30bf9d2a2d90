"""A switch: where trunks meet. It brings messages from one to the other and knows nothing of what they say.

In: messages [from][to, head, frame] at one ROUTER socket with CURVE, the only port of a cluster. Out: [to][from, head,
frame]; lines to the switch's own process; who was heard when, and whose connection is cut. Leaves what follows from
that to its owner: what cannot be brought is lost, and its line sends it again.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import zmq

from rockroll.errors import RockrollError
from rockroll.rpc.keys import serve_with
from rockroll.rpc.line import BEAT, Line, Lines
from rockroll.rpc.trunk import BEAT_S, BEATING, HUB, Parts
from rockroll.rpc.zeromq import ZmqPort

PROBE_AGAIN_S = (0.05, 0.5)
_log = logging.getLogger(__name__)


class Switch:
    """on_line: a trunk has opened a line to this process. on_heard: a trunk that was not there before. on_cut: the
    connection of one has ended; it may come back."""

    def __init__(
        self,
        address: str,
        key: Path,
        *,
        on_line: Callable[[bytes, Line], None],
        on_heard: Callable[[bytes], None] = lambda _: None,
        on_cut: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self.address = address
        self._key = key
        self._on_heard, self._on_cut = on_heard, on_cut
        self.heard: dict[bytes, float] = {}
        """When each trunk was heard last, by the loop's clock."""
        self._ways: dict[bytes, Parts] = {}
        self._lines = Lines(self._put, on_line)
        self._loop = asyncio.get_running_loop()
        self._timers: set[asyncio.TimerHandle] = set()
        self._port: ZmqPort

    def start(self) -> None:
        """Binds; `address` is then the one that was got. RockrollError where it is taken."""
        # It ends no connection itself: one that has ended was ended by the other side, or by the network.
        port = self._port = ZmqPort(zmq.ROUTER, self._on_message, lambda: None, self._someone_gone, asks=False)
        port.sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        port.sock.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            serve_with(port.sock, self.address, self._key)
            port.sock.bind(self.address)
        except zmq.ZMQError as error:
            port.close()
            raise RockrollError(f"cannot listen at {self.address}: {error}; is another hub using it?") from error
        self.address = port.sock.getsockopt_string(zmq.LAST_ENDPOINT)
        port.open()
        self._later(BEAT_S, self._tick)

    def forget(self, trunk: bytes) -> None:
        """It will not come back."""
        self.heard.pop(trunk, None)
        self._ways.pop(trunk, None)
        self._lines.end(trunk)

    def probe(self, trunk: bytes) -> bool:
        """Whether its connection stands, as far as the socket knows."""
        self._put(trunk, BEATING, b"")
        return trunk in self._ways

    def _on_message(self, parts: list[bytes]) -> None:
        try:
            source, to, head, data = parts
        except ValueError:
            _log.error("rpc: a message of %d parts came to %s; it is no trunk's", len(parts), self.address)
            return
        if source not in self.heard:
            self.heard[source] = 0.0
            self._on_heard(source)
        self.heard[source] = self._loop.time()
        if to != HUB:
            self._way(to).send_parts((source, head, data))
        elif head[:1] == bytes([BEAT]):
            self._put(source, BEATING, b"")
        else:
            try:
                self._lines.heard(source, head, data)
            except (ValueError, struct.error) as error:
                _log.error("rpc: a message to %s cannot be read: %s", self.address, error)

    def _put(self, trunk: bytes, head: bytes, data: bytes) -> None:
        self._way(trunk).send_parts((HUB, head, data))

    def _way(self, trunk: bytes) -> Parts:
        way = self._ways.get(trunk)
        if way is None:
            way = self._ways[trunk] = Parts(self._port, trunk, lambda: self._cut(trunk))
        return way

    def _cut(self, trunk: bytes) -> None:
        if self._ways.pop(trunk, None) is not None and trunk in self.heard:
            self._on_cut(trunk)

    def _someone_gone(self) -> None:
        """ZeroMQ does not say whose connection has ended: who cannot be sent a beat. Again later, as in server.py."""
        self._probe_all()
        for seconds in PROBE_AGAIN_S:
            self._later(seconds, self._probe_all)

    def _probe_all(self) -> None:
        for trunk in tuple(self.heard):
            self._put(trunk, BEATING, b"")

    def _tick(self) -> None:
        self._lines.tick()
        self._later(BEAT_S, self._tick)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        timer = self._loop.call_later(seconds, lambda: (self._timers.discard(timer), what()))
        self._timers.add(timer)

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._port.close()
