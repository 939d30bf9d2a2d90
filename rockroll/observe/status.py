"""The state of a run, as numbers: what its display, its trackers' neighbours and Prometheus show.

In: what the controller tells as it goes. Out: `Status`. Leaves drawing to panes.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rockroll.observe.flights import Flights
from rockroll.observe.number import Number


@dataclass
class Status:
    """The state of a run, as numbers."""

    name: str
    steps: int
    step: int = 0
    phase: str = "starting"
    started: float = field(default_factory=time.monotonic)
    curve: list[float] = field(default_factory=list)
    """Mean training reward of every step so far."""
    evals: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out pass rate)."""
    outcomes: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, summed."""
    done: int = 0
    """Episodes ended in this phase."""
    wanted: int = 0
    """Episodes that this phase needs."""
    running: int = 0
    flights: Flights = field(default_factory=Flights)
    """The episodes under way."""
    engines: Callable[[], Mapping[str, float]] = dict
    """How the replicas are, when it is asked; empty: there are none."""
    census: Callable[[], Sequence[Number]] = list
    """What processes and nodes of the run report, when it is asked, by another thread than the run's."""
    version: int = 0
    """Of the weights that were delivered last."""
    tokens: int = 0
    tokens_per_s: float = 0.0
    phase_started: float = field(default_factory=time.monotonic)
    on_phase: Callable[[str, int], None] = lambda phase, step: None
    """Told of every phase and its step as it begins."""

    def enter(self, phase: str, wanted: int = 0) -> None:
        """A new phase begins: its counters start at zero."""
        self.on_phase(phase, self.step)
        self.phase, self.wanted, self.done, self.tokens = phase, wanted, 0, 0
        self.phase_started = time.monotonic()

    def count_tokens(self, n: int) -> None:
        """n more tokens were sampled."""
        self.tokens += n
        self.tokens_per_s = self.tokens / max(time.monotonic() - self.phase_started, 1e-3)
