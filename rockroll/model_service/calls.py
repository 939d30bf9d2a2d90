"""Which requests of one sandbox are one call: how an answer is given once, however often its client asks for it.

In: what was asked (a digest of path and body), whether the client says that it retries, and what became of each
connection. Out: the call that a request belongs to, and when a call that nobody hears any more is to end. Pure: no
clock, no socket. Leaves tasks and timers to gateway.py, and what a connection's end says to endpoint.py.

    begin ─► heard ─► (delivered, failed) forgotten
               │ its last connection broke before the answer was delivered
               ├─► the model still speaks, and the client is not known to retry: forgotten, to be cancelled
               └─► held ─► a request with the same digest: heard again, from the answer's beginning
                     └──► HOLD_S later: forgotten, to be cancelled

Two equal requests on two whole connections are two calls. One of them is a retry of the other where its client says so
(a retry count above 0) and the other has not been answered yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HOLD_S = 10.0
"""How long a call waits for its client to come back. The SDKs come back after 0.5 to 8 s."""
MAX_HELD = 64
"""Answers of one sandbox that wait to be asked for again; a further one ends the oldest's wait."""


@dataclass(eq=False)
class _Known:
    key: bytes
    heard: int = 1
    """Connections that it is being sent on, or was sent on without being known to be delivered."""
    answered: bool = False
    until: float | None = None
    """Held: the moment at which it is forgotten."""


class Calls:
    """The calls of one sandbox under one route. An id that is not known any more is no error: events come late."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._by_key: dict[bytes, list[int]] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._known)

    def arrive(self, key: bytes, *, retry: bool) -> int | None:
        """A request came: the call that it is a retry of, which is heard from now on; None: it is a new one.

        key: a digest of all that makes two requests the same. retry: the client says that it has asked before.
        """
        ids = self._by_key.get(key, [])
        known = self._known
        broken = [id for id in ids if known[id].heard == 0]
        running = [id for id in ids if known[id].heard and not known[id].answered] if retry else []
        if not broken and not running:
            return None
        id = broken[0] if broken else running[-1]
        call = known[id]
        call.heard += 1
        call.until = None
        return id

    def begin(self, key: bytes) -> int:
        """A new call, heard by the request that it is for."""
        self._last += 1
        self._known[self._last] = _Known(key)
        self._by_key.setdefault(key, []).append(self._last)
        return self._last

    def answered(self, id: int) -> None:
        """The model has said all."""
        if (call := self._known.get(id)) is not None:
            call.answered = True

    def failed(self, id: int) -> None:
        """There will be no answer: a retry is a new call."""
        self._forget(id)

    def delivered(self, id: int) -> None:
        """One connection took the whole answer: whoever asks again wants another one."""
        self._forget(id)

    def broke(self, id: int, now: float, *, retries: bool) -> Literal["heard", "held", "ended"]:
        """A connection broke before the answer was delivered on it. retries: its client is known to ask again then.

        heard: it is being sent on another. held: it waits, see `expire`. ended: it is forgotten; what runs of it must
        be cancelled.
        """
        call = self._known.get(id)
        if call is None:
            return "ended"
        call.heard -= 1
        if call.heard:
            return "heard"
        if not call.answered and not retries:
            self._forget(id)
            return "ended"
        call.until = now + HOLD_S
        if call.answered:
            held = [id for id, each in self._known.items() if each.answered and each.until is not None]
            for each in sorted(held, key=self._until)[: max(0, len(held) - MAX_HELD)]:
                self._forget(each)
        return "held" if id in self._known else "ended"

    def expire(self, id: int, now: float) -> bool:
        """Whether `id` is not to be waited for any longer: then what runs of it must be cancelled."""
        call = self._known.get(id)
        if call is None or call.until is None or now < call.until:
            return False
        self._forget(id)
        return True

    def knows(self, id: int) -> bool:
        return id in self._known

    def _until(self, id: int) -> float:
        return self._known[id].until or 0.0

    def _forget(self, id: int) -> None:
        call = self._known.pop(id, None)
        if call is None:
            return
        ids = self._by_key[call.key]
        ids.remove(id)
        if not ids:
            del self._by_key[call.key]
