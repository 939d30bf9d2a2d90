"""Calls of somebody's code, each with a time limit.

In: a function and its arguments. Out: what it returned, a coroutine run to its end; Hang or Broken where it did not
come back or raised. Leaves what that means to the rules.

Each is made in a thread that is given up where it hangs: a process should end after it has told of that.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from rockroll.errors import RockrollError


class Hang(Exception):
    """A call did not come back."""


class Broken(Exception):
    """A call raised, or returned against the contract."""


class Calls:
    """Calls of somebody's code, each with a time limit; coroutines are run to their end."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.slowest: dict[str, float] = {}
        """Seconds, by the function's name."""
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[tuple[Any, BaseException | None]]]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._serve, daemon=True).start()

    def of(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        """What it returns. Raises Hang, Broken for what it raises, and RockrollErrors as they are."""
        said: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        name = getattr(function, "__name__", "call")
        began = time.perf_counter()
        self._work.put((lambda: function(*args, **named), said))
        try:
            result, error = said.get(timeout=self.limit)
        except queue.Empty:
            raise Hang(f"{name} did not come back within {self.limit:g} s") from None
        self.slowest[name] = max(self.slowest.get(name, 0.0), time.perf_counter() - began)
        if isinstance(error, RockrollError):
            raise error
        if error is not None:
            raise Broken(f"{name} raised {type(error).__name__}: {error}") from error
        return result

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            while True:
                work, said = self._work.get()
                try:
                    result = work()
                    if inspect.isawaitable(result):
                        result = runner.run(_awaited(result))
                    said.put((result, None))
                except BaseException as error:  # noqa: BLE001  somebody's code may raise anything; it is a finding
                    said.put((None, error))


async def _awaited(result: Any) -> Any:
    return await result
