"""One request's completions while the model makes them: `n` calls to an upstream, and all that they have said so far.

In: an upstream that is up, and the ChatRequests. Out: the replies, or what was said from any place on, to any number of
listeners, one after the other or at once. Leaves HTTP and what a failure looks like to gateway.py.
"""

from __future__ import annotations

import asyncio
from functools import partial

from rockroll.errors import PeerLost
from rockroll.model_service.source import Source
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta

AHEAD = 64
"""Of what was said, so much is given at a time: what a slow client has not taken yet lies here once, not twice."""

Said = tuple[int, Delta | ChatReply]
"""An index of the requests, and what that one said."""


class Generation:
    """running ─► every reply said; or failed: then none of its calls runs any more.

    What was said is kept to the end, for a client that comes back: as much as one answer has. Listeners that are slow
    hold nobody.
    """

    def __init__(self, upstream: Source, requests: list[ChatRequest], *, stream: bool) -> None:
        self.said: list[Said] = []
        self.over: asyncio.Future[list[ChatReply]] = asyncio.get_running_loop().create_future()
        """All replies, in order; or what the first call raised that failed: PeerLost where it was cancelled."""
        self._news: asyncio.Future[None] | None = None
        self.size = self._left = len(requests)
        """Of how many completions it is."""
        self._calls: list[asyncio.Task[ChatReply]] = []
        for index, request in enumerate(requests):
            call = upstream.chat(request, partial(self._say, index) if stream else None)
            call.add_done_callback(partial(self._ended, index))
            self._calls.append(call)

    async def replies(self) -> list[ChatReply]:
        """All of them, in order. Raises what a call raised. A caller that is cancelled cancels nothing here."""
        return await asyncio.shield(self.over)

    async def more(self, at: int) -> list[Said]:
        """What was said from place `at` on; waits until there is something. Raises as `replies`, after all is said."""
        while at >= len(self.said):
            if self.over.done():
                self.over.result()
                return []
            if self._news is None:
                self._news = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._news)
        return self.said[at : at + AHEAD]

    def cancel(self) -> None:
        """A second time, or after the end, it does nothing."""
        for call in self._calls:
            call.cancel()

    def _say(self, index: int, delta: Delta) -> None:
        self.said.append((index, delta))
        self._tell()

    def _ended(self, index: int, call: asyncio.Task[ChatReply]) -> None:
        error = PeerLost("the call was cancelled") if call.cancelled() else call.exception()
        if self.over.done():
            return
        if error is not None:
            self.over.set_exception(error)
            self.over.exception()  # noted: nobody may be left to ask
            self.cancel()
        else:
            self.said.append((index, call.result()))
            self._left -= 1
            if self._left == 0:
                self.over.set_result([each.result() for each in self._calls])
        self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set_result(None)
            self._news = None
