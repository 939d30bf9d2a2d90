"""Calls under way, counted.

In: the begin and the end of each. Out: how many there are, when the last one ended, and the moment at which there is
none. Leaves what is concluded from it to the callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any


class Calls:
    """`with calls:` around each of them."""

    def __init__(self) -> None:
        self.under_way = 0
        self.last = time.monotonic()
        """When one ended last."""
        self._none: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        self.under_way += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.under_way -= 1
        self.last = time.monotonic()
        if self._none is not None and not self.under_way:
            self._none.set_result(None)
            self._none = None

    async def none(self) -> None:
        """Returns once there is none."""
        while self.under_way:
            if self._none is None:
                self._none = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._none)


def counted(handler: Callable[..., Any], of: Callable[[Any], Calls]) -> Callable[..., Any]:
    """An rpc handler (`await handler(body, peer)`, or a stream) whose calls are counted, from begin to end.

    of: where, by the body; what that raises is the call's error.
    """
    if not inspect.isasyncgenfunction(handler):

        async def answer(body: Any, *more: Any) -> Any:
            with of(body):
                return await handler(body, *more)

        return answer

    async def stream(body: Any, *more: Any) -> AsyncIterator[Any]:
        with of(body):
            async with contextlib.aclosing(handler(body, *more)) as items:
                async for item in items:
                    try:
                        yield item
                    except asyncio.CancelledError as stop:
                        # The handler's to catch, as if nobody stood between it and the server.
                        with contextlib.suppress(StopAsyncIteration):
                            await items.athrow(stop)
                        return

    return stream
