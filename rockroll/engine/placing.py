"""Which replica each request is with, and those that wait because all are full.

In: prompts, the replicas that serve, what they report. Out: a replica for each prompt, now or when one has room: first
come, first served. Leaves the choice among several to routing.py, asking the replica and its death to pool.py.

    held while all are full ──► at a replica ──► ended
"""

from __future__ import annotations

import asyncio
from collections import deque

from rockroll.engine.replica import Life
from rockroll.engine.routing import Routes
from rockroll.errors import RockrollError


class Placing:
    def __init__(self) -> None:
        self.serving: dict[int, Life] = {}
        self.held: deque[tuple[asyncio.Future[Life], list[int]]] = deque()
        self.routes = Routes()
        self.under_way = 0

    @property
    def idle(self) -> bool:
        return not self.under_way and not self.held

    def add(self, life: Life) -> None:
        """From now on it gets requests."""
        self.serving[life.number] = life
        self.routes.add(life.number)
        self.let_go()

    def remove(self, life: Life) -> None:
        """It gets no more requests."""
        if self.serving.get(life.number) is life:
            del self.serving[life.number]
            self.routes.remove(life.number)

    async def begin(self, ids: list[int]) -> Life:
        """The replica that gets a prompt, counted as under way there. Those that had to wait come first."""
        number = None if self.held else self.routes.choose(ids)
        if number is not None:
            return self._begun(number, ids)
        place: asyncio.Future[Life] = asyncio.get_running_loop().create_future()
        held = (place, ids)
        self.held.append(held)
        try:
            return await place
        except asyncio.CancelledError:
            if not place.cancelled() and place.exception() is None:
                self.end(place.result(), ids, [])
            elif held in self.held:
                self.held.remove(held)
            raise

    def end(self, life: Life, ids: list[int], answer: list[int]) -> None:
        """What `begin` gave has ended, whatever became of it."""
        self.under_way -= 1
        if self.serving.get(life.number) is life:
            self.routes.ended(life.number, ids, answer)
        if self.held:
            self.let_go()

    def let_go(self) -> None:
        """Places those who wait, in their order, as far as there is room."""
        while self.held:
            place, ids = self.held[0]
            if not place.done():
                number = self.routes.choose(ids)
                if number is None:
                    return
                place.set_result(self._begun(number, ids))
            self.held.popleft()

    def refuse(self, error: RockrollError) -> None:
        """Those who wait are told that nothing comes any more."""
        for place, _ in self.held:
            if not place.done():
                place.set_exception(error)
        self.held.clear()

    def _begun(self, number: int, ids: list[int]) -> Life:
        self.routes.begun(number, ids)
        self.under_way += 1
        return self.serving[number]
