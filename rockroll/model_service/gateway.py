"""The model endpoint of every sandbox on a node: the vendors' HTTP in, frames to the rollout side out.

In: a listening socket for each sandbox, and where its calls go (a relay's address and a token). Out: HTTP answers.
The socket says which sandbox asks and the route says for which episode; nothing in the request does, headers least of
all. Leaves the vendors' formats to dialects/, connections to endpoint.py, bytes that leave to outlet.py, the calls of
a sandbox to box.py, the link to upstream.py, and binding inside a sandbox to the sandbox room.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import unquote

import msgspec
from aiohttp import web

from rockroll.errors import ModelServiceError, PeerLost, RockrollError, SandboxNotFound, UsageError
from rockroll.model_service.box import Asked, Box, Limits, digest
from rockroll.model_service.budget import Budget
from rockroll.model_service.dialects import DIALECTS, Call, Dialect, vendor_at
from rockroll.model_service.endpoint import Connection, Endpoint, refusal
from rockroll.model_service.outlet import EventStream, pass_through, whole
from rockroll.model_service.service import COMPATIBLE, RemoteServer, Service
from rockroll.model_service.source import Server, Source
from rockroll.model_service.upstream import Upstream

NO_BUDGET = Budget()
TOOLS_AT = "/mcp/"
"""Below this path are the MCP servers of a route."""
OF_A_SANDBOX = Limits()

_log = logging.getLogger(__name__)


def box_environment(port: int) -> dict[str, str]:
    """What tells clients in a sandbox where the model is. The keys are any word: nobody checks them."""
    return {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": "rockroll",
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
        "ANTHROPIC_API_KEY": "rockroll",
    }


class Gateway:
    """attach ─► route ─► route … ─► shut ─► attach … ─► detach, for each sandbox. Belongs to one event loop."""

    def __init__(self) -> None:
        self._boxes: dict[str, Box] = {}
        self._upstreams: dict[str, Source] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._tools: dict[str, RemoteServer] = {}
        """MCP servers, by URL: as many as recipes name."""
        self._since = int(time.time())

    async def attach(self, sandbox_id: str, sock: socket.socket, limits: Limits = OF_A_SANDBOX) -> None:
        """Serves `sock` (listening; owned by the gateway from now on). A second time, after a restart of the sandbox,
        it replaces the first; the route stays."""
        old = self._boxes.get(sandbox_id)
        box: Box

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return await self._answer(box, request)

        box = self._boxes[sandbox_id] = Box(sandbox_id, limits)
        box.endpoint = Endpoint(sock, answer, connections=limits.connections, bodies=limits.bodies)
        if old is not None:
            box.upstream, box.place, box.token = old.upstream, old.place, old.token
            box.spent, box.over, box.tools = old.spent, old.over, old.tools
            self._end(old)

    def shut(self, sandbox_id: str) -> None:
        """Ends the endpoint and the calls of a sandbox that has died; its route waits for the next `attach`. Nothing
        happens for one that is not attached."""
        if (box := self._boxes.get(sandbox_id)) is not None:
            self._end(box)

    def forget(self, sandbox_id: str) -> None:
        """Ends the sandbox's endpoint, its calls and its route. Nothing happens for one that is not attached."""
        if (box := self._boxes.pop(sandbox_id, None)) is not None:
            self._end(box)
            self._close_unused()

    async def detach(self, sandbox_id: str) -> None:
        """`forget`, and waits until nothing of it runs any more."""
        box = self._boxes.get(sandbox_id)
        self.forget(sandbox_id)
        if box is not None:
            await box.endpoint.wait_closed()

    def route(
        self,
        sandbox_id: str,
        upstream: str | None,
        token: str,
        budget: Budget = NO_BUDGET,
        *,
        key: str = "",
        speaks: Collection[str] = (),
        tools: Mapping[str, str] | None = None,
    ) -> str | None:
        """From now on the sandbox's calls go to the relay at `upstream`, under `token`, or to the server at that
        http(s) URL, with `key` (the sandbox never sees it); None: they are refused. speaks: as service.py has it.

        A change ends what came before it: calls under way are cancelled up to the relay's handler, and connections
        made earlier are closed, so that no byte written before the change is taken for a call after it.
        budget: what all calls under this route may use up together. The same route again changes nothing of it.
        tools: MCP servers that the sandbox may ask at /mcp/NAME while it is routed, by name: their http(s) URLs.
        Returns why calls under the route before were refused for want of its budget; None where none was.
        """
        box = self._attached(sandbox_id)
        over, place = box.over, _place(upstream, key, speaks)
        same = (box.place, box.token, box.tools) == (place, token, dict(tools or {}))
        if same and (box.upstream is None) == (upstream is None):
            return over
        servers = {url: self._tools.get(url) or RemoteServer(url) for url in (tools or {}).values()}
        source = None
        if upstream is not None:
            if upstream.startswith("http") and not (budget.prompt_tokens is budget.completion_tokens is None):
                raise UsageError(
                    "a server's tokens are not counted: an http route's budget has calls, concurrent, body_bytes and "
                    "seconds; leave prompt_tokens and completion_tokens out"
                )
            if (source := self._upstreams.get(place)) is None:
                source = self._upstreams[place] = _source(upstream, key, speaks)
        box.route(source, token, budget)
        box.place = place
        box.tools = dict(tools or {})
        self._tools |= servers
        self._close_unused()
        return over

    def route_to(self, sandbox_id: str, source: Source, token: str = "", budget: Budget = NO_BUDGET) -> None:
        """As `route`, to any source of answers; it is the gateway's from now on, which closes it after its last use."""
        box = self._attached(sandbox_id)
        if box.upstream is source and box.token == token:
            return
        if self._upstreams.setdefault(source.address, source) is not source:
            raise UsageError(f"another source of answers at {source.address} is in use; route to that one")
        box.route(source, token, budget)
        box.place = source.address
        self._close_unused()

    async def close(self) -> None:
        """Detaches every sandbox and ends every connection to a relay."""
        await asyncio.gather(*(self.detach(each) for each in list(self._boxes)))
        await asyncio.gather(*self._closing, *(server.close() for server in self._tools.values()))

    def _attached(self, sandbox_id: str) -> Box:
        if (box := self._boxes.get(sandbox_id)) is None:
            raise SandboxNotFound(f"sandbox {sandbox_id!r} has no model endpoint on this node; is it running?")
        return box

    def _end(self, box: Box) -> None:
        box.cancel_calls()
        box.endpoint.close()

    def _close_unused(self) -> None:
        """A relay that no sandbox is routed to has most likely ended with its run: no reason to look for it."""
        used = {box.upstream for box in self._boxes.values()}
        for address, upstream in list(self._upstreams.items()):
            if upstream not in used:
                del self._upstreams[address]
                task = asyncio.get_running_loop().create_task(upstream.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    # -----------------------------------------------------------------------------------------------------------
    # One request
    # -----------------------------------------------------------------------------------------------------------

    async def _answer(self, box: Box, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.rstrip("/")
        if isinstance(request.protocol, Connection):
            request.protocol.asked()
        try:
            if path.startswith(TOOLS_AT):
                return await self._tool(box, request, path.removeprefix(TOOLS_AT))
            if box.upstream is not None and (server := box.upstream.server(path)) is not None:
                return await self._forward(box, request, server)
            if (dialect := DIALECTS.get(path)) is not None:
                _allow(request, "POST")
                return await self._complete(box, request, dialect)
            if path == "/v1/models" or path.startswith("/v1/models/"):
                _allow(request, "GET")
                return await self._models(box, request, unquote(path.removeprefix("/v1/models").lstrip("/")))
            raise ModelServiceError(
                f"nothing is at {path[:128]}; there are GET /v1/models and POST {', '.join(DIALECTS)}",
                status=404,
                type="invalid_request_error",
                code="unknown_url",
            )
        except ModelServiceError as error:
            response = refusal(error, request)
            if box.endpoint.is_late(request):
                response.force_close()  # says so: a client must not send its next call on a connection about to end
            return response

    async def _models(self, box: Box, request: web.BaseRequest, name: str) -> web.Response:
        names = await (await self._ready(box, request)).names()
        vendor = vendor_at("/v1/models", request.headers)
        if not name:
            return whole(vendor.models(names, self._since), {})
        if name in names:
            return whole(vendor.model(name, self._since), {})
        raise ModelServiceError(
            f"model {name[:128]!r} is not served here; served: {', '.join(names) or 'none'}",
            status=404,
            type="invalid_request_error",
            code="model_not_found",
            param="model",
        )

    async def _forward(self, box: Box, request: web.BaseRequest, server: Server) -> web.StreamResponse:
        """The request and its answer as they are. A route that changes ends the connection, and with it this."""
        with box.reading():
            body = await box.endpoint.read_body(request)
        self._routed(box, request)
        try:
            with box.forwarding(len(body) if request.method == "POST" else None) as told:
                async with server.ask(request.method, request.raw_path, request.headers, body) as answer:
                    told(answer.status)
                    return await pass_through(request, answer)
        except ConnectionError:
            return _nobody()

    async def _tool(self, box: Box, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """A request to an MCP server, and its answer as it is: no call of the model, and none of its budget."""
        if (url := box.tools.get(name)) is None:
            raise ModelServiceError(
                f"no MCP server is called {name[:64]!r} here; there are: {', '.join(sorted(box.tools)) or 'none'}",
                status=404,
                type="invalid_request_error",
                code="unknown_server",
            )
        with box.reading():
            body = await box.endpoint.read_body(request)
        self._routed(box, request)
        try:
            async with self._tools[url].ask(request.method, "", request.headers, body) as answer:
                return await pass_through(request, answer)
        except ConnectionError:
            return _nobody()
        except ModelServiceError as error:
            # where the server is on the host is no business of the program in the sandbox
            _log.error("model service: MCP server %s of sandbox %s: %s", name, box.id, error)
            raise ModelServiceError(f"the MCP server {name} cannot be reached", status=502) from None

    async def _complete(self, box: Box, request: web.BaseRequest, dialect: Dialect) -> web.StreamResponse:
        with box.reading():
            body = await box.endpoint.read_body(request)
            key = digest(request.path, request.headers, body)
            self._routed(box, request)
            if (asked := box.again(key, request.headers)) is None:
                call = box.history.parse(dialect, body)
                size = len(body)
                del body
                if dialect.count is None:
                    box.room(call.n, size)  # refused before it waits for a relay
                upstream = await self._ready(box, request)
                id, created = f"{dialect.id_prefix}{secrets.token_hex(12)}", int(time.time())
                if dialect.count is not None:
                    headers = {dialect.vendor.request_id: id}
                    return whole(dialect.count(await self._counted(box, request, upstream, call, id)), headers)
                asked = box.begin(key, size, id, created, call, upstream)
        try:
            with box.hearing(asked, request):
                return await self._tell(box, request, dialect, asked)
        except ConnectionError:
            return _nobody()

    async def _tell(self, box: Box, request: web.BaseRequest, dialect: Dialect, asked: Asked) -> web.StreamResponse:
        """The answer, from its beginning to its last byte."""
        headers = {dialect.vendor.request_id: asked.id}
        if not asked.call.stream:
            with self._explained(box, request, asked.upstream):
                replies = await asked.generation.replies()
            response = whole(asked.call.answer(asked.id, asked.created, replies), headers)
            await response.prepare(request)
            await response.write_eof()
            return response
        out, events = EventStream(request, headers), asked.call.events(asked.id, asked.created)
        try:
            with self._explained(box, request, asked.upstream):
                await out.pass_on(asked.generation, events)
        except ModelServiceError as error:
            if not out.begun:
                raise
            await out.send(events.error(error))
        await out.end()
        return out.response

    async def _counted(self, box: Box, request: web.BaseRequest, upstream: Source, call: Call, id: str) -> int:
        counting = upstream.count(call.requests(id, box.id, box.token)[0])
        box.counting.add(counting)
        try:
            with self._explained(box, request, upstream):
                return await counting
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if this is None or this.cancelling():
                raise  # the client hung up
            raise (_late() if box.endpoint.is_late(request) else upstream.lost()) from None
        finally:
            counting.cancel()
            box.counting.discard(counting)

    async def _ready(self, box: Box, request: web.BaseRequest) -> Source:
        """The relay this request goes to, when it is up. From the return on to the next await, nothing can change."""
        upstream = self._routed(box, request)
        await upstream.ready()
        if self._routed(box, request) is not upstream:
            raise _late()
        return upstream

    def _routed(self, box: Box, request: web.BaseRequest) -> Source:
        if box.endpoint.is_late(request):
            raise _late()
        if box.upstream is None:
            raise ModelServiceError(
                "no model is routed to this sandbox: model calls are answered only while an episode runs in it",
                status=503,
                type="server_error",
                code="no_upstream",
            )
        return box.upstream

    @contextmanager
    def _explained(self, box: Box, request: web.BaseRequest, upstream: Source) -> Iterator[None]:
        """What ends a call becomes a ModelServiceError that the client may read."""
        try:
            yield
        except PeerLost:
            raise (_late() if box.endpoint.is_late(request) else upstream.lost()) from None
        except ModelServiceError:
            raise
        except (RockrollError, msgspec.DecodeError) as error:
            # what went wrong on the host is no business of the program in the sandbox
            _log.error("model service: a call of sandbox %s failed: %s", box.id, error)
            raise ModelServiceError("the model could not answer; the run's log says why", status=500) from None


def _place(upstream: str | None, key: str, speaks: Collection[str]) -> str:
    """Names a source of answers among all of the gateway, and gives no key away."""
    if upstream is None or not (key or speaks):
        return upstream or ""
    told = hashlib.sha256("\0".join([key, *sorted(speaks)]).encode()).hexdigest()
    return f"{upstream} {told}"


def _source(upstream: str, key: str, speaks: Collection[str]) -> Source:
    if upstream.startswith(("http://", "https://")):
        return Service(RemoteServer(upstream, key), {*COMPATIBLE, *speaks})
    if not upstream.startswith(("ipc://", "tcp://", "hub://")):
        raise UsageError(
            f"a model route leads to a relay (ipc://, tcp://, hub://), or to a server at http(s)://; got {upstream!r}"
        )
    if key or speaks:
        raise UsageError("a key and dialects are of an http(s):// server; a relay has neither")
    return Upstream(upstream)


def _allow(request: web.BaseRequest, method: str) -> None:
    if request.method != method:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            # codex tries a WebSocket first: at this status it turns to HTTP at once, at any other after 7 s of trying
            raise ModelServiceError(
                f"{request.path[:128]} takes {method} over HTTP, not a WebSocket",
                status=426,
                type="invalid_request_error",
                code="websocket_unsupported",
            )
        raise ModelServiceError(
            f"{request.path[:128]} takes {method}, got {request.method[:16]}",
            status=405,
            type="invalid_request_error",
            code="method_not_allowed",
        )


def _nobody() -> web.Response:
    """The client is gone: nobody to tell, and nothing for the host's log."""
    nobody = web.Response()
    nobody.force_close()
    return nobody


def _late() -> ModelServiceError:
    return ModelServiceError(
        "the episode that this call belongs to has ended",
        status=503,
        type="server_error",
        code="route_changed",
    )
