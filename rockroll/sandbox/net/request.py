"""One request to the proxy, read so that nobody down the line can read it in another way.

In: the bytes of a request's head; a response's headers. Out: whom it is for, and the head to send on. Raises BadRequest
with the status and the sentence to answer with. Leaves bodies to h11 and connections to proxy.py.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import h11

from rockroll.sandbox.network import Host, parse_authority, shown

MAX_HEAD = 32 << 10
"""Bytes of a request's line and headers."""
HTTP_PORT = 80
# What is between two neighbours on the way (RFC 9110, 7.6.1). Framing is h11's to write anew.
_HOP_BY_HOP = frozenset(
    b"connection proxy-connection keep-alive proxy-authenticate proxy-authorization proxy-authentication-info te"
    b" trailer transfer-encoding upgrade http2-settings".split()
)
_OURS = frozenset((b"host", b"content-length"))
"""What a Connection header cannot name away."""


class BadRequest(Exception):
    def __init__(self, said: str, status: int = 400) -> None:
        super().__init__(said)
        self.status = status


class Ask(NamedTuple):
    """Whom a request is for; `forward` is what to send there, None for CONNECT."""

    host: Host
    port: int
    forward: h11.Request | None


def parse_head(client: h11.Connection, head: bytes) -> Ask:
    """head: up to and with the empty line. client: in the server's role, new; it knows the request afterwards.

    Raises BadRequest, and Refused for a host whose spelling is not plain.
    """
    text = head.removesuffix(b"\r\n\r\n")
    if re.search(rb"\r\n[ \t]", text):
        raise BadRequest("a header is folded over two lines; write it in one")
    if re.search(rb"[\r\n\0]", text.replace(b"\r\n", b"")):
        raise BadRequest("a line of the request ends in something else than CR LF")
    try:
        client.receive_data(head)
        request = client.next_event()
    except h11.RemoteProtocolError as error:
        raise BadRequest(f"this is not HTTP/1.1 that can be read: {error}", error.error_status_hint) from None
    if not isinstance(request, h11.Request):
        raise BadRequest("this is not an HTTP/1.1 request")
    if request.http_version not in (b"1.0", b"1.1"):
        raise BadRequest("this proxy speaks HTTP/1.1", 505)
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
        raise BadRequest("a request has Transfer-Encoding or Content-Length, not both, and the first in HTTP/1.1 only")
    return _connect(request) if request.method == b"CONNECT" else _absolute(request)


def _connect(request: h11.Request) -> Ask:
    for name, value in request.headers:
        if name == b"transfer-encoding" or (name == b"content-length" and int(value)):
            raise BadRequest("CONNECT has no body")
    return Ask(*parse_authority(request.target.decode("ascii"), None), None)


def _absolute(request: h11.Request) -> Ask:
    target = request.target.decode("ascii")
    found = re.fullmatch(r"([a-zA-Z][a-zA-Z0-9+.-]*)://([^/?#]*)([^#]*)", target, re.ASCII)
    if not found:
        raise BadRequest(f"this is a proxy: ask for http://HOST/PATH, or CONNECT HOST:PORT; got {shown(target)}")
    scheme, authority, rest = found.groups()
    if scheme.lower() != "http":
        raise BadRequest(f"this proxy speaks http:// itself and CONNECT for all else; got {shown(target)}")
    if "@" in authority:
        raise BadRequest("a name and password in the address are not sent on; use the Authorization header")
    host, port = parse_authority(authority, HTTP_PORT)
    said = dict(request.headers).get(b"host")
    if said is not None and parse_authority(said.decode("latin-1"), HTTP_PORT) != (host, port):
        raise BadRequest(
            f"the Host header ({shown(said.decode('latin-1'))}) and the address ({shown(authority)}) differ"
        )
    headers = [(b"Host", authority.encode()), *_end_to_end(request, without=b"host")]
    if any(name == b"transfer-encoding" for name, _ in request.headers):
        headers.append((b"Transfer-Encoding", b"chunked"))
    headers.append((b"Connection", b"close"))
    path = rest if rest.startswith("/") else f"/{rest}"
    return Ask(host, port, h11.Request(method=request.method, target=path, headers=headers))


def answer_head(response: h11.Response | h11.InformationalResponse) -> list[tuple[bytes, bytes]]:
    """The headers of a response for the program in the sandbox."""
    headers = _end_to_end(response)
    if any(name == b"transfer-encoding" for name, _ in response.headers):
        headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    if isinstance(response, h11.Response):
        headers.append((b"Connection", b"close"))
    return headers


def _end_to_end(
    message: h11.Request | h11.Response | h11.InformationalResponse, without: bytes = b""
) -> list[tuple[bytes, bytes]]:
    """Headers that are not meant for the next neighbour only, spelled as they were."""
    raw = message.headers.raw_items()
    named = {each.strip().lower() for name, value in raw if name.lower() == b"connection" for each in value.split(b",")}
    dropped = _HOP_BY_HOP | (named - _OURS) | {without}
    return [(name, value) for name, value in raw if name.lower() not in dropped]
