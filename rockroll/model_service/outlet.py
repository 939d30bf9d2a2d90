"""Where the bytes of an answer leave for the client.

In: a request, and what to send or a generation. Out: HTTP. A client that stops reading is given up after STALLED_S;
until then at most the socket's buffers and 64 KiB wait for it. Leaves what the bytes say to the dialects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from aiohttp import web

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects import Events
from rockroll.model_service.generation import Generation
from rockroll.model_service.source import Exchange
from rockroll.model_service.wire import ChatReply

HEADERS_AFTER_S = 0.5
"""A stream begins with its first token, or after this long without one. Before, a refusal still has its own status."""
PING_AFTER_S = 10.0
"""A stream in which nothing was said for so long says that it is alive."""
STALLED_S = 60.0
"""A client that takes nothing of its stream for so long is cut off, and its call is cancelled."""


def whole(body: bytes, headers: dict[str, str], status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


async def pass_through(request: web.BaseRequest, answer: Exchange) -> web.StreamResponse:
    """`answer`, piece for piece as it comes. One that breaks off breaks the client's connection too: it must not pass
    for whole. ConnectionResetError then, and where the client is gone."""
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    await response.prepare(request)
    try:
        async for piece in answer.pieces:
            await _within(request, response.write(piece))
    except ModelServiceError as error:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(error.message) from None
    await _within(request, response.write_eof())
    return response


class EventStream:
    """One stream of server-sent events: unsent ─► (first send: status and headers) open ─► ended."""

    def __init__(self, request: web.BaseRequest, headers: dict[str, str]) -> None:
        self._request = request
        self.response = web.StreamResponse(headers={"Cache-Control": "no-cache", **headers})
        self.response.content_type = "text/event-stream"
        self.response.charset = "utf-8"

    @property
    def begun(self) -> bool:
        return self.response.prepared

    async def send(self, data: bytes) -> None:
        """Returns when the client keeps up. ConnectionResetError where it is gone, or was cut off."""
        if not self.begun:
            await self.response.prepare(self._request)
        await _within(self._request, self.response.write(data))

    async def pass_on(self, generation: Generation, events: Events) -> None:
        """Everything that is said, as the dialect writes it, at once; and a ping where nothing is said for long.

        Raises as `send`, and what a call raised: before the first byte, if not `begun`.
        """
        data, patience, at, left = events.begin(), HEADERS_AFTER_S, 0, generation.size
        while left:
            try:
                async with asyncio.timeout(patience):
                    said = await generation.more(at)
            except TimeoutError:
                data = data or events.PING
            else:
                at += len(said)
                for index, what in said:
                    if isinstance(what, ChatReply):
                        left -= 1
                        data += events.reply(index, what)
                    else:
                        data += events.delta(index, what)
            if not left:
                data += events.end()
            if data:
                await self.send(data)
            data, patience = b"", PING_AFTER_S

    async def end(self) -> None:
        """As `send`."""
        await _within(self._request, self.response.write_eof())


async def _within(request: web.BaseRequest, writing: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(STALLED_S):
            await writing
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client has stopped to read") from None
