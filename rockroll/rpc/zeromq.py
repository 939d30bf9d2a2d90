"""A link over ZeroMQ.

In: frames to send. Out: sockets with rockroll's bounds set. Leaves receiving to server.py (ROUTER) and client.py
(DEALER).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import zmq
import zmq.asyncio

from rockroll.rpc.frame import MAX_MESSAGE

HEARTBEAT_MS = 700
"""So often a side that hears nothing is asked whether it is there."""
SILENT_MS = 1300
"""One that answers nothing for so long is lost: at most 2 s after its packets stopped coming."""
_log = logging.getLogger(__name__)


def zmq_socket(kind: int) -> zmq.asyncio.Socket:
    sock = zmq.asyncio.Context.instance().socket(kind)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
    sock.setsockopt(zmq.SNDHWM, 10_000)
    sock.setsockopt(zmq.RCVHWM, 10_000)
    sock.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_MS)
    sock.setsockopt(zmq.HEARTBEAT_TTL, SILENT_MS)
    return sock


class ZmqLink:
    """Frames out in order, through one queue, so that a full socket holds its sender and nobody else."""

    def __init__(self, sock: zmq.asyncio.Socket, prefix: list[bytes]) -> None:
        self._sock, self._prefix = sock, prefix
        self._last: asyncio.Future[Any] | None = None

    def send(self, data: bytes) -> None:
        if not self._sock.closed:
            self._last = sending = asyncio.ensure_future(self._sock.send_multipart([*self._prefix, data]))
            sending.add_done_callback(_sent)

    async def drain(self) -> None:
        if self._last is not None and not self._last.done():
            await asyncio.wait([self._last])


def _sent(sending: asyncio.Future[Any]) -> None:
    if sending.cancelled() or (error := sending.exception()) is None:
        return
    if isinstance(error, zmq.ZMQError) and error.errno == zmq.EHOSTUNREACH:
        return  # the peer is gone; nobody waits for this reply
    _log.error("rpc: a frame could not be sent: %s", error)
