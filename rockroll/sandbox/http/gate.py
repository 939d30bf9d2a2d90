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
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if self._hosts is not None and _name(headers.get("host", "")) not in self._hosts:
                error = UsageError(
                    f"the Host header names none of this server's addresses: {headers.get('host', '')!r}; call it as"
                    f" {', '.join(sorted(self._hosts))}"
                )
                return await answer(error, 421)(scope, receive, send)
            if (foreign := _foreign(headers)) is not None:
                error = UsageError(f"a web page of another origin ({foreign!r}) may not call this server")
                return await answer(error, 403)(scope, receive, send)
            open_to_all = scope["path"] in OPEN or scope["path"].startswith(f"{STATIC}/")
            if not open_to_all and not self._may_pass(headers):
                error = UsageError(
                    "the bearer token is missing or wrong: send the header `Authorization: Bearer TOKEN`, with what is"
                    " in the token file that `rockroll serve` names at its start"
                )
                return await answer(error, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        await self._app(scope, receive, send)

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


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
