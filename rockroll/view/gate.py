"""Who may look, and what a page may do.

In: ASGI requests. Out: those that carry the token, as `?token=`, a cookie or a bearer header, to the application; to
the others 401, 403 or 421. Every answer goes out with headers under which a page runs no script and loads nothing that
is not the server's own. Leaves the pages to pages.py.

`?token=` is how a person comes in: the answer sets a cookie and leads to the address without it, so that the token
stands in no bookmark. It is made for one start of the server and says nothing to any other.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rockroll.sandbox.http.gate import host_name

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
STATIC = "/static/"
_ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>rockroll view: token</title><link rel="stylesheet" href="/static/view.css">
<main class="ask"><h1>rockroll view</h1><p>{why}</p><form action="/" method="get">
<label for="token">Token</label> <input id="token" name="token" type="password" autocomplete="off" required autofocus>
<button>Open</button></form><p>The command <code>rockroll view</code> printed it, within the address to open.</p></main>
"""


class Gate:
    """token: None lets everybody in. hosts: what the Host header may say, without the port; None: anything."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: Collection[str] | None) -> None:
        self._app, self._hosts = app, None if hosts is None else {host.lower() for host in hosts}
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        answer = self._answer(scope, Headers(scope=scope)) or self._app
        await answer(scope, receive, guarded)

    def _answer(self, scope: Scope, headers: Headers) -> Response | None:
        """What is said at the door; None: come in."""
        host = headers.get("host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            # A stranger's page can call 127.0.0.1 by a name of its own (DNS rebinding); its Host header says so.
            return Response("The Host header names none of this server's addresses.\n", 421, media_type="text/plain")
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "navigate")
        if site not in ("none", "same-origin") and mode != "navigate":
            return Response("A page of another origin may not call this server.\n", 403, media_type="text/plain")
        if self._token is None or scope["path"].startswith(STATIC):
            return None
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in asked if name == "token"]
        port = host.rpartition(":")[2] if host.rpartition(":")[2].isdigit() else "80"
        cookie = f"rockroll-view-{port}"  # cookies know no ports: two servers of one host would share theirs
        if given and self._is_it(given[-1]):
            rest = urlencode([(name, value) for name, value in asked if name != "token"])
            back = RedirectResponse(quote(scope["path"]) + (f"?{rest}" if rest else ""), 303)
            back.set_cookie(cookie, self._token, httponly=True, samesite="lax")
            return back
        kind, _, said = headers.get("authorization", "").partition(" ")
        if (kind.lower() == "bearer" and self._is_it(said.strip())) or self._is_it(_cookie(headers, cookie)):
            return None
        why = "That is not this server's token." if given else "This page asks for the token of this start."
        return Response(_ASK.format(why=why), 401, {"WWW-Authenticate": "Bearer"}, media_type="text/html")

    def _is_it(self, said: str) -> bool:
        return self._token is not None and hmac.compare_digest(said.encode(), self._token.encode())


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
