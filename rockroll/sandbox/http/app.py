"""The HTTP API as an ASGI application.

In: a NodeLink, a token, routers of other APIs. Out: an application for uvicorn. Leaves the routes to routes.py and
endpoints.py, who may come in to gate.py, and listening to server.py.

    create_app(NodeLink(), token="…", routers=[rock_compat.router])

A router's endpoints find the link as `request.app.state.node` (`call`, `stream`: as of rpc.Client); what they raise of
rockroll.errors is answered as failure.py says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request, Response

from rockroll import __version__
from rockroll.errors import RockrollError
from rockroll.sandbox.http.failure import answer
from rockroll.sandbox.http.gate import LOOPBACK, Gate
from rockroll.sandbox.http.node_link import NodeLink


def create_app(
    node: NodeLink,
    *,
    token: str | None,
    hosts: Collection[str] | None = LOOPBACK,
    routers: Iterable[APIRouter] = (),
) -> FastAPI:
    """token: None lets everybody in. hosts: what a Host header may name; None: anything."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await node.close()

    app = FastAPI(title="rockroll", version=__version__, lifespan=life, redoc_url=None)
    app.state.node = node
    app.add_middleware(Gate, token=token, hosts=hosts)

    @app.exception_handler(RockrollError)
    async def refused(_: Request, error: RockrollError) -> Response:
        return answer(error)

    for router in routers:
        app.include_router(router)
    return app
