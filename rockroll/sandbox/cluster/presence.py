"""Who of a cluster is there, by when each was heard.

In: times. Out: which nodes are suspect, which clients are gone. Pure. Leaves hearing them to the hub.

A process that is killed has its connections closed by the kernel, at once; one behind a network that drops packets is
silent first. A client whose connection was closed is gone unless it dials again within CLOSED_S; one that fell silent
may be cut off, and has OWNER_S.
"""

from __future__ import annotations

from typing import Literal

LOOK_S = 0.5
SUSPECT_S = 3.0
"""A node that beats every second and was not heard for so long: who waits for it is told 5 s after it was, at most."""
RETURN_S = 2.0
"""A connection that was reset is back by then."""
FORGET_S = 120.0
CLOSED_S, OWNER_S = 5.0, 45.0
BURIED_KEPT = 100_000


class Presence:
    """Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._cut: dict[bytes, float] = {}
        """Trunk → when its connection ended."""
        self._expected: dict[bytes, float] = {}
        """Clients that own boxes of a node and have not been heard by this hub → when they must have been."""
        self._buried: dict[bytes, None] = {}

    def cut(self, trunk: bytes, now: float) -> None:
        """Its connection has ended. Told again, it is no later than it was."""
        self._cut.setdefault(trunk, now)

    def expect(self, client: bytes, now: float) -> None:
        """A node has boxes of a client that this hub does not know (yet)."""
        self._expected.setdefault(client, now + OWNER_S)

    def bury(self, trunk: bytes) -> None:
        """It is gone for good."""
        self._cut.pop(trunk, None)
        self._expected.pop(trunk, None)
        self._buried[trunk] = None
        while len(self._buried) > BURIED_KEPT:
            del self._buried[next(iter(self._buried))]

    def is_buried(self, trunk: bytes) -> bool:
        return trunk in self._buried

    def node(self, trunk: bytes, now: float, heard: float) -> Literal["there", "suspect", "forgotten"]:
        """What a node is now."""
        if (known := self._cut.get(trunk)) is not None:
            if heard > known:
                del self._cut[trunk]
            elif now - known > RETURN_S:
                return "forgotten" if now - heard > FORGET_S else "suspect"
        if now - heard > FORGET_S:
            return "forgotten"
        return "suspect" if now - heard > SUSPECT_S else "there"

    def gone(self, heard: dict[bytes, float], now: float) -> list[bytes]:
        """Clients that will not come back. heard: when each that is known was."""
        gone = []
        for trunk, at in heard.items():
            self._expected.pop(trunk, None)
            known = self._cut.get(trunk)
            if known is not None and at > known:
                del self._cut[trunk]
                known = None
            if now - at > OWNER_S or (known is not None and now - known > CLOSED_S):
                gone.append(trunk)
        gone += [trunk for trunk, until in self._expected.items() if now > until]
        return gone
