"""The page's life: `await serve(…)` listens, tells where, and returns when it is told to end.

In: runs, a host, a port. Out: pages, until Ctrl-C or SIGTERM. Leaves the application to pages.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvicorn

from rockroll.errors import UsageError
from rockroll.sandbox.http.gate import LOOPBACK
from rockroll.sandbox.http.listening import Server, is_loopback, listen, url_of
from rockroll.view.pages import create_app
from rockroll.view.runs import Runs

ENDING_S = 2
"""Seconds that requests under way have to end."""


async def serve(runs: Runs, host: str, port: int, token: str | None, ready: Callable[[str], None]) -> None:
    """ready: told the URL to open once it answers, the token in it. UsageError, HostError where it cannot listen."""
    local = is_loopback(host)
    if token is None and not local:
        raise UsageError(
            f"--host {host} can be reached from other machines, and without a token all of them could read these runs: "
            "leave --no-token out, or serve on 127.0.0.1"
        )
    listening = listen(host, port)
    app = create_app(runs, token=token, hosts={*LOOPBACK, host} if local else None)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=ENDING_S,
        lifespan="on",
    )
    server = Server(config, lambda: ready(url_of(listening) + (f"/?token={token}" if token else "/")))
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        await asyncio.shield(serving)
    finally:
        app.state.live.end()  # pages that listen would hold it up
        server.should_exit = True
        await serving
        runs.close()
