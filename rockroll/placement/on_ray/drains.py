"""Which nodes Ray drains, for who runs something on them.

In: nothing but the cluster that this process is in. Out: the ids of those nodes, again and again while there are any.
Leaves what to do about it to who is told.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from rockroll.placement.on_ray.joining import draining

LOOK_S = 2.0
"""Ray tells nobody of a drain: it has to be looked for."""
_log = logging.getLogger(__name__)


class Drains:
    """told: called with them on the loop that this is made on. On a thread that nobody has to wait for: where the head
    is gone, Ray's calls take a minute."""

    def __init__(self, told: Callable[[set[str]], None]) -> None:
        self._told, self._loop = told, asyncio.get_running_loop()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                if leaving := draining():
                    self._loop.call_soon_threadsafe(self._tell, leaving)
            except Exception as error:  # noqa: BLE001 - what Ray's state raises is not Ray's error; the next look may do
                _log.warning("which nodes Ray drains is not known: %s", error)

    def _tell(self, leaving: set[str]) -> None:
        if not self._over.is_set():
            self._told(leaving)

    def stop(self) -> None:
        """Nobody is told any more."""
        self._over.set()

    async def ended(self) -> None:
        """Ray is asked nothing any more. After `stop`."""
        await asyncio.to_thread(self._thread.join)
