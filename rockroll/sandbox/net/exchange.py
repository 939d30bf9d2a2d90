"""One plain HTTP request carried to its host, and the answer back.

In: the request as request.py has made it, a connection to the program and one to the host. Out: both bodies, streamed
and framed anew by h11 as they come, so that nobody reads them in another way. Leaves whom to ask, and when to give up,
to proxy.py.
"""

from __future__ import annotations

import asyncio

import h11

from rockroll.sandbox.linux.streams import Streams
from rockroll.sandbox.net.request import MAX_HEAD, answer_head


class NotHttp(Exception):
    """What the host sent is no HTTP, and nothing of it has gone to the program."""


async def exchange(http: h11.Connection, request: h11.Request, client: Streams, origin: Streams) -> bool:
    """Whether the whole request was taken; the host may answer before. http: the program's side, its request read.

    Raises NotHttp, and OSError where either side broke off: the program has half an answer then.
    """
    upstream = h11.Connection(h11.CLIENT, max_incomplete_event_size=2 * MAX_HEAD)
    await origin.write(upstream.send(request) or b"")
    try:
        async with asyncio.TaskGroup() as both:
            sending = both.create_task(_send_body(http, upstream, client, origin))
            await _send_answer(http, upstream, client, origin)
            whole = sending.done()
            sending.cancel()
        return whole
    except ExceptionGroup as failed:
        error = failed.exceptions[0]
        if not isinstance(error, h11.ProtocolError):
            raise error from None
        if http.our_state is not h11.SEND_RESPONSE:
            raise ConnectionAbortedError(f"the host's answer ended early: {error}") from None
        raise NotHttp(str(error)) from None


async def _send_body(http: h11.Connection, upstream: h11.Connection, client: Streams, origin: Streams) -> None:
    """Up to its end, or until the host takes no more of it: it may have answered then."""
    while True:
        await asyncio.sleep(0)  # a body in chunks of a byte must not keep the node from everybody else
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                http.receive_data(await client.read())
        except h11.ProtocolError as error:
            raise ConnectionAbortedError(f"the request ended early: {error}") from None
        part = event if isinstance(event, h11.Data) else h11.EndOfMessage()  # without trailers
        try:
            await origin.write(upstream.send(part) or b"")
        except (OSError, h11.LocalProtocolError):
            return
        if part is not event:
            return


async def _send_answer(http: h11.Connection, upstream: h11.Connection, client: Streams, origin: Streams) -> None:
    while True:
        await asyncio.sleep(0)  # as above
        event = upstream.next_event()
        if event is h11.NEED_DATA:
            upstream.receive_data(await origin.read())
        elif isinstance(event, h11.InformationalResponse):
            if http.their_http_version == b"1.1":
                await client.write(http.send(_copied(event)) or b"")
        elif isinstance(event, h11.Response):
            await client.write(http.send(_copied(event)) or b"")
        elif isinstance(event, h11.Data):
            await client.write(http.send(event) or b"")
        elif isinstance(event, h11.EndOfMessage):
            await client.write(http.send(h11.EndOfMessage()) or b"")
            return
        else:
            raise ConnectionAbortedError("the host closed the connection")


def _copied(event: h11.Response | h11.InformationalResponse) -> h11.Response | h11.InformationalResponse:
    return type(event)(status_code=event.status_code, reason=event.reason, headers=answer_head(event))
