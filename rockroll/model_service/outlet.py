"""Where the bytes of an answer leave for the client.

In: a request and what to send. Out: HTTP. A client that stops reading is given up after STALLED_S; until then at most
the socket's buffers and 64 KiB wait for it. Leaves what the bytes say to the dialects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from aiohttp import web

STALLED_S = 60.0
"""A client that takes nothing of its stream for so long is cut off, and its call is cancelled."""


def whole(body: bytes, headers: dict[str, str], status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


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
        await self._within(self.response.write(data))

    async def end(self) -> web.StreamResponse:
        await self._within(self.response.write_eof())
        return self.response

    async def _within(self, writing: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(STALLED_S):
                await writing
        except TimeoutError:
            if (transport := self._request.transport) is not None:
                transport.abort()
            raise ConnectionResetError("the client has stopped to read") from None
