"""One environment's part of the random numbers that Python and numpy keep for the whole process.

In: calls of an environment that draws from `random` or `numpy.random` themselves, as many libraries do. Out: the same
calls, each episode with a state of its own: episodes that run at once do not disturb one another, nor anybody else.
Leaves environments with a generator of their own alone: they need none of this.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TURN = threading.Lock()
"""There is one global state: environments that are stepped in threads take turns."""


class OwnRandom:
    """The global generators as one environment left them."""

    def __init__(self) -> None:
        self._kept: tuple[Any, Any] | None = None

    @contextmanager
    def here(self) -> Iterator[None]:
        """Within it, what is drawn is drawn from this environment's state; the process's own comes back after it."""
        with _TURN:
            outside = _states()
            if self._kept is not None:
                _restore(self._kept)
            try:
                yield
            finally:
                self._kept = _states()
                _restore(outside)


def _states() -> tuple[Any, Any]:
    numpy = sys.modules.get("numpy.random")
    return random.getstate(), numpy.get_state() if numpy else None


def _restore(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    numpy = sys.modules.get("numpy.random")
    if numpy and states[1] is not None:
        numpy.set_state(states[1])
