"""Answers: errors, one that is dropped when the caller hangs up, and streams that wait for a slow reader.

In: ASGI requests, what is to be awaited or sent. Out: ASGI answers. Leaves what is sent to endpoints.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rockroll.errors import RockrollError
from rockroll.sandbox.http.failure import failed, status_of

T = TypeVar("T")
LINES, EVENTS, BYTES = "application/x-ndjson", "text/event-stream", "application/octet-stream"


def answer(error: RockrollError, status: int | None = None, headers: dict[str, str] | None = None) -> Response:
    """The error as an answer; status: in place of its class's."""
    return Response(msgspec.json.encode(failed(error)), status or status_of(error), headers, "application/json")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller hangs up: ClientDisconnect. The request's body has been
    read."""
    return await _unless_gone(_hung_up(request.receive), work)


async def _unless_gone(hung_up: Coroutine[Any, Any, None], work: Coroutine[Any, Any, T]) -> T:
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(hung_up)
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.wait((task, gone))
        if not task.cancelled():
            task.exception()  # it failed as it was cancelled: nobody is left to be told


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _either(one: Coroutine[Any, Any, None], other: Coroutine[Any, Any, Any]) -> None:
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Streamed(Response):
    """Sends what the generator yields as the reader takes it; a reader that hangs up closes the generator, and so does
    the end of the server (`app.state.ending`).

    heard: set once somebody else has read the request's body to its end; None: it is read already.
    """

    def __init__(
        self,
        items: AsyncGenerator[bytes, None],
        media_type: str,
        headers: dict[str, str] | None = None,
        heard: asyncio.Event | None = None,
    ) -> None:
        unbuffered = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(None, 200, {**unbuffered, **(headers or {})}, media_type)
        del self.headers["content-length"]
        self._items, self._heard = items, heard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for data in self._items:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def hung_up() -> None:
            if self._heard is not None:
                await self._heard.wait()
            await _hung_up(receive)

        try:
            await _unless_gone(_either(hung_up(), scope["app"].state.ending.wait()), work())
        except ClientDisconnect:
            pass
        finally:
            await self._items.aclose()  # here: a task that is cancelled before its first step closes nothing


def wanted(request: Request, *offered: str) -> str:
    """The first of the offered media types that the caller asks for; the first of all where it asks for none."""
    accept = [part.split(";")[0].strip() for part in request.headers.get("accept", "").split(",")]
    return next((kind for kind in accept if kind in offered), offered[0])


def packed(kind: str, name: str, item: Any, at: int | None = None) -> bytes:
    """One item of a stream as a line or as an event; at: what an event's id says."""
    data = msgspec.json.encode(item)
    if kind == LINES:
        return data + b"\n"
    number = b"" if at is None else b"id: %d\n" % at
    return b"event: %s\n%sdata: %s\n\n" % (name.encode(), number, data)
