"""A line: frames both ways between two processes that no connection joins for good, each once and in order.

In: frames to send, heads and frames as they arrive, over anything that may lose them (a connection that broke, a hub
that was started anew). Out: the same frames at the other end, in order, none twice; what was lost on the way is sent
again. Pure: leaves the carrying, the clock and who is there to trunk.py and switch.py.

    head: kind, line, seq, ack
    DATA   one frame, number `seq`; `ack`: the last one that came from there
    ACK    `ack` came from there; `seq` is the last one sent from here: who has less asks
    SENT   as ACK, to be answered by one: something sent was not acknowledged yet
    ASK    as ACK, and all after `ack` is to be sent again
    ENDED  this line is not known here (any more)

A line is opened by its first frame and ended by either side, or by another line between the same two.
"""

from __future__ import annotations

import secrets
import struct
from collections import deque
from collections.abc import Callable

from rockroll.rpc.frame import check_size

DATA, ACK, SENT, ASK, ENDED, BEAT = range(1, 7)
"""BEAT: of the trunk, not of a line: somebody is there."""
HEAD = struct.Struct(">B8sQQ")
ACK_FRAMES, ACK_BYTES = 16, 1 << 20
"""So much that came is worth an ACK of its own; less waits for a frame that goes back, or for `tick`."""
ENDED_KEPT = 4096
NO_LINE = bytes(8)


class Line:
    """One end. put: brings a head and a frame to the other side, or loses them. on_frame: each frame that came.
    on_ended: the other side does not know this line any more; not called after `close`."""

    def __init__(
        self,
        id: bytes,
        put: Callable[[bytes, bytes], None],
        on_frame: Callable[[bytes], None],
        on_ended: Callable[[], None],
    ) -> None:
        self.id, self._put, self.on_frame, self.on_ended = id, put, on_frame, on_ended
        self._kept: deque[bytes] = deque()
        """Frames sent and not acknowledged; the last one has number `_sent`."""
        self._sent = self._came = self._said = 0
        """Numbers of the last frame sent, the last that came, the last that was acknowledged."""
        self._owed = 0
        """Bytes that came since the last acknowledgement."""
        self._asked = False
        self.closed = False

    def send(self, data: bytes) -> None:
        if self.closed:
            return
        check_size(data)  # a trunk would break at it, come back, and send it again
        self._sent += 1
        self._kept.append(data)
        self._said, self._owed = self._came, 0
        self._put(HEAD.pack(DATA, self.id, self._sent, self._came), data)

    async def drain(self) -> None:
        """Streams and parts have credit, which holds a fast sender; there is nothing else to wait for."""

    def heard(self, kind: int, seq: int, ack: int, data: bytes) -> None:
        self._forget(ack)
        if kind == DATA:
            if seq == self._came + 1:
                self._came, self._asked = seq, False
                self._owed += len(data)
                if self._came - self._said >= ACK_FRAMES or self._owed >= ACK_BYTES:
                    self._say(ACK)
                self.on_frame(data)
            elif seq > self._came:
                self._ask()
        elif kind == ASK:
            self._again()
            if seq > self._came:
                self._ask()
        elif kind in (ACK, SENT):
            if seq > self._came:
                self._ask()
            elif kind == SENT:
                self._say(ACK)
        elif kind == ENDED and not self.closed:
            self.close()
            self.on_ended()

    def resume(self) -> None:
        """The way was interrupted: what may have been lost is asked for, and offered."""
        self._asked = False
        self._ask()

    def tick(self) -> None:
        """Now and then: says what came, and that something was sent which nobody has acknowledged."""
        if self._asked:
            self.resume()
        elif self._kept:
            self._say(SENT)
        elif self._said != self._came:
            self._say(ACK)

    def close(self) -> None:
        """Nothing is sent or told any more."""
        self.closed = True
        self._kept.clear()

    def _forget(self, ack: int) -> None:
        for _ in range(min(len(self._kept), ack - (self._sent - len(self._kept)))):
            self._kept.popleft()

    def _again(self) -> None:
        first = self._sent - len(self._kept) + 1
        for seq, data in enumerate(tuple(self._kept), first):
            self._put(HEAD.pack(DATA, self.id, seq, self._came), data)

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._say(ASK)

    def _say(self, kind: int) -> None:
        self._said, self._owed = self._came, 0
        self._put(HEAD.pack(kind, self.id, self._sent, self._came), b"")


class Lines:
    """All lines of one process, by the name of the other side. put: brings (name, head, frame) there, or loses them.
    on_line: told of each line that another has opened, before its first frame; it sets on_frame and on_ended."""

    def __init__(
        self, put: Callable[[bytes, bytes, bytes], None], on_line: Callable[[bytes, Line], None] | None = None
    ) -> None:
        self._put, self._on_line = put, on_line
        self._lines: dict[bytes, Line] = {}
        self._ended: dict[bytes, None] = {}
        """Lines that were there, the last of them: one that has ended is not taken for a new one."""

    def open(self, peer: bytes, on_frame: Callable[[bytes], None], on_ended: Callable[[], None]) -> Line:
        """A new line to `peer`; one that was there has ended."""
        line = self._made(peer, secrets.token_bytes(8))
        line.on_frame, line.on_ended = on_frame, on_ended
        return line

    def _made(self, peer: bytes, id: bytes) -> Line:
        self.end(peer)
        line = Line(id, lambda head, data: self._put(peer, head, data), lambda _: None, lambda: None)
        self._lines[peer] = line
        return line

    def heard(self, peer: bytes, head: bytes, data: bytes) -> None:
        """What came from `peer`. ValueError, struct.error where that is no head."""
        kind, id, seq, ack = HEAD.unpack(head)
        line = self._lines.get(peer)
        if line is None or line.id != id:
            if kind in (ENDED, BEAT):
                return
            # That nothing has come from here says that it is new, whichever of its frames is the first to arrive.
            if ack or id in self._ended or self._on_line is None:
                self._put(peer, HEAD.pack(ENDED, id, 0, 0), b"")
                return
            if line is not None:
                line.close()
                line.on_ended()
            line = self._made(peer, id)
            self._on_line(peer, line)
        line.heard(kind, seq, ack, data)
        if line.closed and self._lines.get(peer) is line:
            self.end(peer)

    def end(self, peer: bytes) -> None:
        """The line to `peer` is over, if there is one; the other side learns it when it says something."""
        if (line := self._lines.pop(peer, None)) is not None:
            line.close()
            self._ended[line.id] = None
            while len(self._ended) > ENDED_KEPT:
                del self._ended[next(iter(self._ended))]

    def resume(self) -> None:
        for line in tuple(self._lines.values()):
            line.resume()

    def tick(self) -> None:
        for line in tuple(self._lines.values()):
            line.tick()
