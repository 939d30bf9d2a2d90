"""The HTTP API as an ASGI application.

In: a NodeLink, a token, routers of other APIs. Out: an application for uvicorn. Leaves the routes to routes.py and
endpoints.py, who may come in to gate.py, and listening to server.py.

    create_app(NodeLink(), token="…", routers=[rock_compat.router])

A router's endpoints find the link as `request.app.state.node` (`call`, `stream`: as of rpc.Client); what they raise of
rockroll.errors is answered as failure.py says.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse

from rockroll.errors import RockrollError, UsageError
from rockroll.sandbox.http import metrics
from rockroll.sandbox.http.answers import answer
from rockroll.sandbox.http.endpoints import Endpoints
from rockroll.sandbox.http.gate import LOOPBACK, STATIC, Gate
from rockroll.sandbox.http.node_link import NodeLink
from rockroll.sandbox.http.openapi import describe
from rockroll.sandbox.wire import NodeMetrics, PoolInfo


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

    app = FastAPIOffline(
        title="rockroll",
        version=importlib.metadata.version("rockroll"),
        lifespan=life,
        redoc_url=None,
        static_url=STATIC,
    )
    app.state.node = node
    app.state.ending = asyncio.Event()
    app.add_middleware(Gate, token=token, hosts=hosts)

    @app.exception_handler(RockrollError)
    async def refused(_: Request, error: RockrollError) -> Response:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def not_here(request: Request, error: HTTPException) -> Response:
        said = f"{request.method} {request.url.path}: {error.detail}; /docs shows what there is"
        return answer(UsageError(said), error.status_code, dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")

    @app.get("/v1/health", include_in_schema=False)
    async def health() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        said = await node.call("node.metrics", {}, type=NodeMetrics)
        pools = await node.call("pool.list", {}, type=list[PoolInfo])
        return Response(metrics.text(said, pools), media_type=metrics.CONTENT_TYPE)

    app.include_router(Endpoints(node).router)
    for router in routers:
        app.include_router(router)
    describe(app)
    return app
