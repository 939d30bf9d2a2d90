"""Links over ZeroMQ: a port (one socket on the event loop) and the links through it.

In: frames to send. Out: messages as they come, one after the other, to a callback. Leaves what they say, and who is
there, to server.py (ROUTER) and client.py (DEALER).

The socket is driven by its file descriptor and never blocks. That descriptor only says that something has changed: what
has is asked for until there is nothing, after a send too, which may have swallowed the news of a message. pyzmq's own
asyncio sockets do the same with several futures for each message; without them a call costs a fifth less.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

import zmq
from zmq.utils.monitor import parse_monitor_message

from rockroll.rpc.frame import MAX_MESSAGE, check_size

HEARTBEAT_MS = 700
"""So often a side that hears nothing is asked whether it is there."""
SILENT_MS = 1300
"""One that answers nothing for so long is lost: at most 2 s after its packets stopped coming."""
_AT_ONCE = 64
"""Messages taken in a row before others on the event loop have their turn."""
_NOW, _MORE, _HAS_MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.RCVMORE)
_THERE, _GONE = int(zmq.EVENT_HANDSHAKE_SUCCEEDED), int(zmq.EVENT_DISCONNECTED)
_log = logging.getLogger(__name__)


class ZmqPort:
    """One socket. on_message: told the parts of each message. on_there, on_gone: a peer's connection is made, has
    ended; which peer's, a ROUTER is not told."""

    def __init__(
        self,
        kind: int,
        on_message: Callable[[list[bytes]], None],
        on_there: Callable[[], None],
        on_gone: Callable[[], None],
        *,
        asks: bool = True,
        tells: bool = True,
    ) -> None:
        """asks: a silent peer's connection is ended from here: for peers on other machines, which can vanish without a
        word. Those on this one are not asked whether they live: the kernel tells of their end, and one that gets no
        processor for two seconds would be lost for it. tells: and from there, where this side is silent."""
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_there, self._on_gone = on_message, on_there, on_gone
        sock = self.sock = zmq.Context.instance().socket(kind)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        sock.setsockopt(zmq.SNDHWM, 10_000)
        sock.setsockopt(zmq.RCVHWM, 10_000)
        if asks:
            sock.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_MS)
            sock.setsockopt(zmq.HEARTBEAT_TTL, SILENT_MS if tells else 0)
        self._monitor = sock.get_monitor_socket(_THERE | _GONE)
        self._held: deque[ZmqLink] = deque()
        """Links with frames that the socket could not take yet."""
        self._looking = False
        self._open = False

    def open(self) -> None:
        """Begins to hear. After bind or connect."""
        self._open = True
        self._loop.add_reader(self.sock.getsockopt(zmq.FD), self._changed)
        self._loop.add_reader(self._monitor.getsockopt(zmq.FD), self._watched)
        self.look()

    def look(self) -> None:
        """Sees soon whether there is something to take or to send."""
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._changed)

    def hold(self, link: ZmqLink) -> None:
        self._held.append(link)

    def _changed(self) -> None:
        self._looking = False
        if not self._open:
            return
        self._watched()  # a connection that was made is told before what came on it
        sock = self.sock
        for _ in range(_AT_ONCE):
            try:
                parts = [sock.recv(_NOW)]
                while sock.getsockopt(_HAS_MORE):
                    parts.append(sock.recv(_NOW))
            except zmq.Again:
                break
            self._on_message(parts)
            if not self._open:
                return
        else:
            self.look()
        for _ in range(len(self._held)):
            link = self._held.popleft()
            if not link.flush():
                self._held.append(link)

    def _watched(self) -> None:
        while self._open:
            try:
                event = int(parse_monitor_message(self._monitor.recv_multipart(_NOW))["event"])
            except zmq.Again:
                return
            (self._on_there if event == _THERE else self._on_gone)()
            self.look()

    def close(self) -> None:
        """A second time it does nothing."""
        if self._open:
            self._loop.remove_reader(self.sock.getsockopt(zmq.FD))
            self._loop.remove_reader(self._monitor.getsockopt(zmq.FD))
        self._open = False
        if not self.sock.closed:
            self.sock.disable_monitor()
            self._monitor.close(0)
            self.sock.close(0)


class ZmqLink:
    """Frames out, in order. identity: of the peer, at a ROUTER. Those that the socket cannot take wait here, and hold
    their sender (`drain`) and nobody else.

    on_gone: told where the peer is not there any more, which a ROUTER notices when it has something for it.
    """

    def __init__(self, port: ZmqPort, identity: bytes | None = None, on_gone: Callable[[], None] | None = None) -> None:
        self._port, self._identity, self._on_gone = port, identity, on_gone
        self._waiting: deque[bytes | tuple[bytes, ...]] = deque()
        """A tuple: a message of several parts."""
        self._sent = asyncio.Event()
        self._sent.set()
        self.there = True
        """False: frames wait for `begin`."""

    def send(self, data: bytes) -> None:
        check_size(data)
        self._send(data)

    def _send(self, data: bytes | tuple[bytes, ...]) -> None:
        if self._port.sock.closed:
            return
        if not self.there or self._waiting or not self._put(data):
            self._sent.clear()
            self._waiting.append(data)
            if self.there and len(self._waiting) == 1:
                self._port.hold(self)

    def flush(self) -> bool:
        """Sends what waits; whether nothing waits any more."""
        while self._waiting and self.there and self._put(self._waiting[0]):
            if self._waiting:  # else the peer was found gone, and what waited is dropped
                self._waiting.popleft()
        if not self._waiting:
            self._sent.set()
        return not self._waiting

    def begin(self, first: bytes) -> None:
        """The peer is there: `first`, then what waits."""
        self._waiting.appendleft(first)
        self.there = True
        if not self.flush():
            self._port.hold(self)

    def drop(self) -> None:
        """What waits is not sent any more."""
        self._waiting.clear()
        self._sent.set()

    async def drain(self) -> None:
        await self._sent.wait()

    def _put(self, data: bytes | tuple[bytes, ...]) -> bool:
        sock = self._port.sock
        try:
            if self._identity is not None:
                sock.send(self._identity, _MORE)
            if isinstance(data, tuple):
                for part in data[:-1]:
                    sock.send(part, _MORE)
                sock.send(data[-1], _NOW)
            else:
                sock.send(data, _NOW)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                self.drop()  # nobody waits for it
                if self._on_gone is not None:
                    self._on_gone()
            else:
                _log.error("rpc: a frame could not be sent: %s", error)
        self._port.look()
        return True
