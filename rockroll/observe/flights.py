"""The episodes under way, as the display shows them: what each does in which sandbox, and what was said to it last.

In: that one began, got its sandbox, was answered, ended. Out: `Flight`s, the oldest first. Leaves what came of them to
record.py. An entry is changed once a turn, never once a token.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Flight:
    """One episode under way."""

    id: str
    task: str = ""
    began: float = field(default_factory=time.monotonic)
    sandbox: str = ""
    node: str = ""
    turns: int = 0
    said: str = ""
    """The model's last answer: of an agent with a shell, the command."""


class Flights:
    """All of a run. Told of by one thread, and read by any."""

    def __init__(self) -> None:
        self._under_way: dict[str, Flight] = {}

    def began(self, id: str, task: str) -> None:
        self._under_way[id] = Flight(id, task)

    def placed(self, id: str, sandbox: str, node: str) -> None:
        if flight := self._under_way.get(id):
            flight.sandbox, flight.node = sandbox, node

    def answered(self, id: str, said: str) -> None:
        if flight := self._under_way.get(id):
            flight.turns += 1
            flight.said = said

    def ended(self, id: str) -> None:
        self._under_way.pop(id, None)

    def all(self) -> list[Flight]:
        """Those under way, the oldest first."""
        return list(self._under_way.values())

    def by_node(self) -> Counter[str]:
        """How many sandboxes are at work, by node."""
        return Counter(flight.node for flight in self.all() if flight.sandbox)
