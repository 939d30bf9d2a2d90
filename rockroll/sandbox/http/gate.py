"""Who may come in: the bearer token, and the Host header of a server on the loopback.

In: ASGI requests. Out: those that may pass, to the application; to the others 401, 403 or 421. Leaves making and
keeping the token to token.py.

A page of a stranger's site can make a browser call 127.0.0.1 under a name of its own (DNS rebinding); the Host header
then says that name. No CORS headers are ever sent.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rockroll.errors import UsageError
from rockroll.sandbox.http.answers import answer

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names under which a server on the loopback is called."""
STATIC = "/static"
OPEN = ("/", "/docs", "/openapi.json", "/v1/health")
"""Paths that say nothing of any sandbox, and need no token; what is under STATIC too."""
TOKEN_HEADERS = ("authorization", "xrl-authorization")
"""`Bearer TOKEN`; the second is what ROCK's SDK sends."""


class Gate:
    """token: None lets everybody in. hosts: what the Host header may say, without the port; None: anything."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: Collection[str] | None) -> None:
        self._app, self._hosts = app, None if hosts is None else {host.lower() for host in hosts}
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if (refusal := self._refusal(scope["path"], Headers(scope=scope))) is None:
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        await refusal(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            return answer(
                UsageError(f"the Host header names none of this server's addresses: {host!r}; call it as {known}"), 421
            )
        if (foreign := _foreign(headers)) is not None:
            return answer(UsageError(f"a web page of another origin ({foreign!r}) may not call this server"), 403)
        if path in OPEN or path.startswith(f"{STATIC}/") or self._may_pass(headers):
            return None
        error = UsageError(
            "the bearer token is missing or wrong: send the header `Authorization: Bearer TOKEN`, with what is in the"
            " token file that `rockroll serve` names at its start"
        )
        return answer(error, 401, {"WWW-Authenticate": "Bearer"})

    def _may_pass(self, headers: Headers) -> bool:
        if self._token is None:
            return True
        for header in TOKEN_HEADERS:
            kind, _, said = headers.get(header, "").partition(" ")
            if kind.lower() == "bearer" and hmac.compare_digest(said.strip().encode(), self._token):
                return True
        return False


def _foreign(headers: Headers) -> str | None:
    """The origin of a page of somebody else's, where a browser says that one is calling: it could send commands
    without ever seeing the answers."""
    site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host"):
        return origin
    return None if site in ("none", "same-origin") else site


def host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
