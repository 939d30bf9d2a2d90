"""The HTTP server's life: `await serve(…)` listens, tells where, and returns when it is told to end.

In: a host, a port, a token. Out: answers, until SIGTERM or Ctrl-C. Leaves the application to app.py and
the socket to listening.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import uvicorn
from fastapi import APIRouter

from rockroll.errors import UsageError
from rockroll.sandbox.http.app import create_app
from rockroll.sandbox.http.gate import LOOPBACK
from rockroll.sandbox.http.listening import Server, is_loopback, listen, url_of
from rockroll.sandbox.http.node_link import NodeLink

KEEP_ALIVE_S = 75
"""Longer than clients keep an idle connection: the server must not close one as a request comes in."""
ENDING_S = 3
"""Seconds that requests under way have to end; a lease has no other end."""


async def serve(
    host: str, port: int, token: str | None, ready: Callable[[str], None], *, routers: Iterable[APIRouter] = ()
) -> None:
    """ready: told the base URL once it answers. UsageError, HostError where it cannot listen."""
    local = is_loopback(host)
    if token is None and not local:
        raise UsageError(
            f"--host {host} can be reached from other machines, and without a token all of them could run programs"
            " here: leave --no-token out, or serve on 127.0.0.1"
        )
    listening = listen(host, port)
    node = NodeLink()
    await node.call("node.info", {})  # a host that can have no sandboxes says so now
    app = create_app(node, token=token, hosts={*LOOPBACK, host} if local else None, routers=routers)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=ENDING_S,
        lifespan="on",
    )
    server = Server(config, lambda: ready(url_of(listening)))
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        app.state.ending.set()
        await serving
