"""One request's completions while the model makes them: `n` calls to the relay, and what they say.

In: an upstream that is up, and the ChatRequests. Out: the replies, or what came since the last look. Leaves HTTP and
what a failure looks like to gateway.py.
"""

from __future__ import annotations

import asyncio
from functools import partial

from rockroll.model_service.upstream import Upstream
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta

AHEAD = 64
"""Deltas that may wait here for their reader; then the relay is asked for no more."""

Said = tuple[int, Delta | ChatReply]
"""An index of the requests, and what that one said."""


class Generation:
    """running ─► every reply taken; or failed, or cancelled: then none of its calls runs any more."""

    def __init__(self, upstream: Upstream, requests: list[ChatRequest], *, stream: bool) -> None:
        self._room = asyncio.Semaphore(AHEAD)
        self._said: asyncio.Queue[tuple[int, Delta | asyncio.Task[ChatReply]]] = asyncio.Queue()
        self._left = len(requests)
        self.calls: list[asyncio.Task[ChatReply]] = []
        for index, request in enumerate(requests):
            call = upstream.chat(request, partial(self._say, index) if stream else None)
            call.add_done_callback(partial(self._ended, index))
            self.calls.append(call)

    @property
    def over(self) -> bool:
        """Whether `more` has given every reply."""
        return self._left == 0

    async def replies(self) -> list[ChatReply]:
        """All of them, in order. Raises what a call raised, CancelledError where it was cancelled."""
        for _ in self.calls:
            _, ended = await self._said.get()
            assert isinstance(ended, asyncio.Task)
            ended.result()
        return [call.result() for call in self.calls]

    async def more(self) -> list[Said]:
        """What was said since the last time, in order; waits until there is something. Raises as `replies`."""
        said = [self._take(*await self._said.get())]
        while not self._said.empty() and len(said) < AHEAD:
            index, what = self._said.get_nowait()
            if isinstance(what, asyncio.Task) and (what.cancelled() or what.exception()):
                self._said.put_nowait((index, what))  # raised the next time: what was said before it counts
                break
            said.append(self._take(index, what))
        return said

    def cancel(self) -> None:
        for call in self.calls:
            call.cancel()

    def _take(self, index: int, what: Delta | asyncio.Task[ChatReply]) -> Said:
        if isinstance(what, Delta):
            self._room.release()
            return index, what
        reply = what.result()
        self._left -= 1
        return index, reply

    async def _say(self, index: int, delta: Delta) -> None:
        await self._room.acquire()
        self._said.put_nowait((index, delta))

    def _ended(self, index: int, call: asyncio.Task[ChatReply]) -> None:
        if not call.cancelled():
            call.exception()  # noted: nobody may be left to ask
        self._said.put_nowait((index, call))
