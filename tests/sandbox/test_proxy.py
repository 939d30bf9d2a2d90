"""What the proxy promises: bytes both ways to whom the policy names, nothing to anybody else, and one reading of each
request. Its programs connect from this host here; test_egress.py has them in a box."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from ipaddress import ip_address

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.sandbox.net.proxy import Limits, Proxy
from rockroll.sandbox.net.request import BadRequest, parse_head
from rockroll.sandbox.net.resolve import Resolver, is_own
from rockroll.sandbox.network import Address, Policy, Refused

HERE = ip_address("127.0.0.1")
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Names:
    """A resolver that knows these names only, and what it was asked for."""

    def __init__(self, **names: Sequence[str]) -> None:
        self.names = {name.replace("_", "."): [ip_address(each) for each in found] for name, found in names.items()}
        self.asked: list[str] = []

    async def __call__(self, name: str, port: int) -> list[Address]:
        self.asked.append(name)
        if name not in self.names:
            raise OSError("Name or service not known")
        return self.names[name]


class Origin:
    """A server on this host's loopback; keeps what it was sent."""

    def __init__(self, answer: bytes | Answer) -> None:
        self.port = 0
        self.heard = b""
        self.connections = 0
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError), contextlib.closing(writer):
            if isinstance(self._answer, bytes):
                self.heard += await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer)
                await writer.drain()
                writer.write_eof()
                self.heard += await reader.read()
            else:
                await self._answer(reader, writer)


@contextlib.asynccontextmanager
async def served(answer: bytes | Answer) -> AsyncIterator[Origin]:
    origin = Origin(answer)
    server = await asyncio.start_server(origin.serve, "127.0.0.1", 0)
    origin.port = server.sockets[0].getsockname()[1]
    yield origin
    server.close()


@contextlib.asynccontextmanager
async def proxied(
    *entries: str, resolve: Names | None = None, **limits: float
) -> AsyncIterator[tuple[Proxy, tuple[str, int]]]:
    proxy = Proxy(Policy(entries), resolve=resolve, limits=Limits(**limits))  # type: ignore[arg-type]
    listening = socket.create_server(("127.0.0.1", 0))
    place = listening.getsockname()
    proxy.serve(listening)
    yield proxy, place
    await proxy.close()
    assert not proxy._tasks and not proxy.live


async def asked(place: tuple[str, int], *said: bytes, end: bool = True) -> bytes:
    """All that comes back."""
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*place)
        for part in said:
            writer.write(part)
            await writer.drain()
        if end:
            writer.write_eof()
        try:
            return await reader.read()
        finally:
            writer.close()


def local(origin: Origin) -> tuple[list[str], Names]:
    """Entries that lead a name to this host's loopback, and who knows it."""
    return [f"site.example:{origin.port}", f"127.0.0.0/8:{origin.port}"], Names(site_example=["127.0.0.1"])


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

# ---- CONNECT -------------------------------------------------------------------------------------------------------


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(b"end")
    writer.write_eof()
    await reader.read()


def connect(host: str, port: int, *headers: str) -> bytes:
    return "\r\n".join([f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}", *headers, "", ""]).encode()


def get(url: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    host = url.split("/")[2]
    return "\r\n".join([f"{method} {url} HTTP/{version}", f"Host: {host}", *headers, "", ""]).encode()


async def test_connect_carries_bytes_both_ways_and_the_end_of_one_leaves_the_other_open() -> None:
    async with served(echo) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (proxy, place):
            got = await asked(place, connect("site.example", origin.port) + b"early\0", b"late")
            assert got == b"HTTP/1.1 200 Connection established\r\n\r\nearly\0lateend"
            while not proxy.recent:
                await asyncio.sleep(0)
            (event,) = proxy.events()
            assert (event.method, event.host, event.address) == ("CONNECT", "site.example", "127.0.0.1")
            assert (event.port, event.verdict, event.open) == (origin.port, "allowed", False)
            assert (event.sent_bytes, event.received_bytes) == (10, 13)


async def test_much_goes_both_ways_at_once_and_whoever_reads_slowly_holds_the_other_back() -> None:
    size, sent = 16 << 20, 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(size // 65536):
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536
        writer.write_eof()
        assert len(await reader.read()) == size

    async with served(flood) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (_, place), asyncio.timeout(60):
            reader, writer = await asyncio.open_connection(*place, limit=65536)
            writer.write(connect("site.example", origin.port))
            await reader.readuntil(b"\r\n\r\n")

            async def send() -> None:
                for _ in range(size // 65536):
                    writer.write(bytes(65536))
                    await writer.drain()
                writer.write_eof()

            sending = asyncio.ensure_future(asyncio.sleep(0.3))
            await sending  # nobody reads meanwhile
            assert sent < size, "all of it is in somebody's memory"
            sending = asyncio.ensure_future(send())
            assert len(await reader.read()) == size
            await sending
            writer.close()


async def test_a_tunnel_that_one_side_breaks_is_broken_for_the_other() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async with served(reset) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (proxy, place):
            with contextlib.suppress(ConnectionResetError):
                await asked(place, connect("site.example", origin.port) + b"x", end=False)
            while not proxy.recent:
                await asyncio.sleep(0.001)
            assert "broken off" in proxy.recent[0].reason


# ---- plain HTTP ----------------------------------------------------------------------------------------------------


async def test_a_plain_request_goes_on_by_its_path_without_what_is_the_neighbours_own() -> None:
    async with served(OK) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (proxy, place):
            url = f"http://Site.Example:{origin.port}/a%20b/../c?q=1&r=%2F"
            headers = ["Accept: x/y", "X-Mine: 1", "x-drop: 2", "Connection: keep-alive, X-Drop", "Keep-Alive: 5"]
            headers += ["Proxy-Connection: keep-alive", "Proxy-Authorization: Basic c2VjcmV0", "TE: trailers"]
            headers += ["Upgrade: h2c", "HTTP2-Settings: AAMA", "Cookie: a=b"]
            got = await asked(place, get(url, *headers))
            assert got == b"HTTP/1.1 200 \r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello".replace(
                b" \r", b" OK\r", 1
            )
            assert origin.heard.split(b"\r\n") == [
                b"GET /a%20b/../c?q=1&r=%2F HTTP/1.1",
                f"Host: Site.Example:{origin.port}".encode(),
                *(b"Accept: x/y", b"X-Mine: 1", b"Cookie: a=b", b"Connection: close", b"", b""),
            ]
            assert proxy.counts == {"allowed": 1, "refused": 0, "failed": 0}


@pytest.mark.parametrize(
    "url", ["http://site.example:PORT", "http://site.example:PORT?q", "HTTP://site.example:PORT/?q"]
)
async def test_an_address_without_a_path_asks_for_the_root(url: str) -> None:
    async with served(OK) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (_, place):
            request = f"GET {url} HTTP/1.0\r\n\r\n".replace("PORT", str(origin.port)).encode()
            assert (await asked(place, request)).endswith(b"hello")
            assert origin.heard.startswith(b"GET /?q HTTP/1.1\r\n" if "q" in url else b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_streams_out_while_the_answer_streams_back(chunked: bool) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert (b"Transfer-Encoding: chunked" in head) == chunked and (b"Content-Length: 6" in head) != chunked
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(2):
            part = await reader.readexactly(8 if chunked else 3)
            writer.write(b"3\r\n" + part.split(b"\r\n")[chunked].upper() + b"\r\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with served(shout) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (_, place), asyncio.timeout(20):
            framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 6"
            reader, writer = await asyncio.open_connection(*place)
            writer.write(get(f"http://site.example:{origin.port}/", framing, method="POST"))
            assert b"Connection: close\r\nTransfer-Encoding: chunked" in await reader.readuntil(b"\r\n\r\n")
            for part in (b"abc", b"def"):
                writer.write(b"3\r\n" + part + b"\r\n" if chunked else part)
                assert await reader.readexactly(8) == b"3\r\n" + part.upper() + b"\r\n"
            if chunked:
                writer.write(b"0\r\nX-Trailer: 1\r\n\r\n")
            assert await reader.read() == b"0\r\n\r\n"
            writer.close()


async def test_every_shape_of_an_answer_arrives_whole() -> None:
    shapes = {
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end": b"d\r\nuntil the end\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nold": b"3\r\nold\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n": b"",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n": b"",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno": b"no",
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n": b"",
    }
    for answer, body in shapes.items():
        async with served(answer) as origin:
            entries, names = local(origin)
            async with proxied(*entries, resolve=names) as (_, place):
                got = await asked(place, get(f"http://site.example:{origin.port}/"))
                status = answer.rpartition(b"HTTP/1.")[2].split(b"\r\n")[0].partition(b" ")[2]
                assert b"HTTP/1.1 " + status + b"\r\n" in got and b"Connection: close" in got
                assert got.rpartition(b"\r\n\r\n")[2] == body or got.endswith(b"\r\n\r\n" + body)
    async with served(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n") as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (_, place):
            got = await asked(place, get(f"http://site.example:{origin.port}/", method="HEAD"))
            assert b"Content-Length: 1000" in got and got.endswith(b"\r\n\r\n")


async def test_an_answer_that_ends_too_early_does_not_look_whole() -> None:
    async with served(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf") as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (proxy, place):
            with contextlib.suppress(ConnectionResetError):
                assert not (await asked(place, get(f"http://site.example:{origin.port}/"))).endswith(b"0\r\n\r\n")
            while not proxy.recent:
                await asyncio.sleep(0.001)
            assert "ended early" in proxy.recent[0].reason


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nBad Header\r\n\r\n", b""])
async def test_what_is_not_http_is_not_passed_on(answer: bytes) -> None:
    async with served(answer) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (proxy, place):
            got = await asked(place, get(f"http://site.example:{origin.port}/"))
            assert got.startswith(b"HTTP/1.1 502 rockroll: site.example:") and b"did not answer in HTTP" in got
            assert proxy.counts["failed"] == 1


async def test_an_answer_before_the_whole_body_is_heard() -> None:
    async def impatient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        writer.write_eof()
        await reader.read()

    async with served(impatient) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (_, place):
            head = get(f"http://site.example:{origin.port}/", f"Content-Length: {1 << 30}", method="POST")
            got = await asked(place, head, bytes(400_000), end=False)
            assert got.startswith(b"HTTP/1.1 413 Too Large") and got.endswith(b"\r\n\r\nno")


# ---- requests that two readers read in two ways ----------------------------------------------------------------------

HIDDEN = b"GET http://site.example:PORT/hidden HTTP/1.1\r\nHost: site.example:PORT\r\n\r\n"


async def test_what_follows_a_request_is_never_a_second_one() -> None:
    async with served(OK) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (proxy, place):
            hidden = HIDDEN.replace(b"PORT", str(origin.port).encode())
            url = f"http://site.example:{origin.port}/"
            for request in (
                get(url) + hidden,
                get(url, "Content-Length: 0", method="POST") + hidden,
                get(url, "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n" + hidden,
                get(url, "Content-Length: 2", method="POST") + b"ab" + hidden,
                get(url, "Connection: keep-alive") + hidden,
            ):
                origin.heard = b""
                assert (await asked(place, request)).count(b"HTTP/1.1 200") == 1
                assert b"hidden" not in origin.heard and origin.heard.count(b"HTTP/1.1") == 1
            assert origin.connections == proxy.counts["allowed"] == 5


BAD = {
    "both framings": "POST {url} HTTP/1.1|Host: {host}|Content-Length: 5|Transfer-Encoding: chunked||0||",
    "both, the other way": "POST {url} HTTP/1.1|Host: {host}|Transfer-Encoding: chunked|Content-Length: 0||0||",
    "two lengths": "POST {url} HTTP/1.1|Host: {host}|Content-Length: 5|Content-Length: 6||hello",
    "a list of lengths": "POST {url} HTTP/1.1|Host: {host}|Content-Length: 5, 6||hello",
    "a signed length": "POST {url} HTTP/1.1|Host: {host}|Content-Length: +5||hello",
    "a hex length": "POST {url} HTTP/1.1|Host: {host}|Content-Length: 0x5||hello",
    "another coding": "POST {url} HTTP/1.1|Host: {host}|Transfer-Encoding: gzip, chunked||0||",
    "a coding twice": "POST {url} HTTP/1.1|Host: {host}|Transfer-Encoding: chunked|Transfer-Encoding: chunked||0||",
    "a coding that is nearly chunked": "POST {url} HTTP/1.1|Host: {host}|Transfer-Encoding: xchunked||0||",
    "a coding in HTTP/1.0": "POST {url} HTTP/1.0|Transfer-Encoding: chunked||0||",
    "a folded header": "GET {url} HTTP/1.1|Host: {host}|X-A: 1| X-B: 2||",
    "a header folded by a tab": "GET {url} HTTP/1.1|Host: {host}|X-A: 1|\tTransfer-Encoding: chunked||",
    "a folded first header": "GET {url} HTTP/1.1| Host: {host}||",
    "a space before the colon": "POST {url} HTTP/1.1|Host: {host}|Transfer-Encoding : chunked||0||",
    "no colon": "GET {url} HTTP/1.1|Host: {host}|Evil||",
    "a bare line feed": "GET {url} HTTP/1.1|Host: {host}|X-A: 1\nX-B: 2||",
    "a bare carriage return": "GET {url} HTTP/1.1|Host: {host}|X-A: 1\rX-B: 2||",
    "a NUL": "GET {url} HTTP/1.1|Host: {host}|X-A: 1\0||",
    "no Host": "GET {url} HTTP/1.1||",
    "two Hosts": "GET {url} HTTP/1.1|Host: {host}|Host: {host}||",
    "another Host": "GET {url} HTTP/1.1|Host: metadata.example||",
    "the Host on another port": "GET {url} HTTP/1.1|Host: site.example||",
    "a Host with a path": "GET {url} HTTP/1.1|Host: {host}/x||",
    "HTTP/2's first line": "PRI * HTTP/2.0||SM||",
    "another version": "GET {url} HTTP/3.7|Host: {host}||",
    "a path alone": "GET /path HTTP/1.1|Host: {host}||",
    "a star": "OPTIONS * HTTP/1.1|Host: {host}||",
    "https without CONNECT": "GET https://{host}/ HTTP/1.1|Host: {host}||",
    "another scheme": "GET ftp://{host}/ HTTP/1.1|Host: {host}||",
    "two slashes": "GET //{host}/ HTTP/1.1|Host: {host}||",
    "a name and a password": "GET http://me:secret@{host}/ HTTP/1.1|Host: {host}||",
    "a name that hides a host": "GET http://site.example@169.254.169.254/ HTTP/1.1|Host: {host}||",
    "a backslash": "GET http://169.254.169.254\\@{host}/ HTTP/1.1|Host: {host}||",
    "a fragment": "GET http://{host}/#x HTTP/1.1|Host: {host}||",
    "a space in the target": "GET http://{host}/a b HTTP/1.1|Host: {host}||",
    "two spaces": "GET  {url} HTTP/1.1|Host: {host}||",
    "CONNECT with a body": "CONNECT {host} HTTP/1.1|Host: {host}|Content-Length: 5||hello",
    "CONNECT with chunks": "CONNECT {host} HTTP/1.1|Host: {host}|Transfer-Encoding: chunked||0||",
    "CONNECT to an address with a path": "CONNECT {host}/ HTTP/1.1|Host: {host}||",
    "CONNECT to a URL": "CONNECT {url} HTTP/1.1|Host: {host}||",
    "CONNECT without a port": "CONNECT site.example HTTP/1.1|Host: {host}||",
    "a method of control characters": "G\x01T {url} HTTP/1.1|Host: {host}||",
    "TLS": "\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03|||",
    "nothing like it": "hello|||",
}


@pytest.mark.parametrize("request_", BAD.values(), ids=BAD)
async def test_a_request_that_can_be_read_in_two_ways_reaches_nobody(request_: str) -> None:
    async with served(OK) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (proxy, place):
            host = f"site.example:{origin.port}"
            text = request_.format(host=host, url=f"http://{host}/")
            got = await asked(place, text.replace("|", "\r\n").encode("latin-1"))
            assert got.split(b" ")[1] in (b"400", b"403", b"501", b"505"), got
            assert got.startswith(b"HTTP/1.1 ") and got.isascii()
            assert (origin.connections, names.asked) == (0, [])
            assert proxy.counts == {"allowed": 0, "refused": 1, "failed": 0}
            assert proxy.recent[0].reason.encode() in got
            good = "POST {url} HTTP/1.1|Host: {host}|Content-Length: 5||hello".format(host=host, url=f"http://{host}/")
            assert (await asked(place, good.replace("|", "\r\n").encode())).endswith(b"hello")


async def test_what_is_told_of_a_request_is_short_and_printable() -> None:
    async with proxied("site.example") as (proxy, place):
        for request in (
            b"GET http://site.example/ HTTP/1.1\r\n\x1b[31m" + b"a" * 30_000 + b"\r\n\r\n",
            b"A" * 30_000 + b" http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            connect("a" * 20_000, 443),
        ):
            line = (await asked(place, request)).partition(b"\r\n")[0].decode("ascii")
            assert line.isprintable() and len(line) < 500
            event = proxy.recent[-1]
            assert len(event.reason) < 450 and len(event.method) <= 20 and len(event.host) <= 253


async def test_a_body_in_chunks_of_a_byte_leaves_the_loop_to_others() -> None:
    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(OK)
        await writer.drain()

    async with served(taken) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (_, place):
            head = get(f"http://site.example:{origin.port}/", "Transfer-Encoding: chunked", method="POST")
            flood = asyncio.ensure_future(asked(place, head, b"1\r\nx\r\n" * 8_000 + b"0\r\n\r\n"))
            turns = 0
            while not flood.done():
                await asyncio.sleep(0)
                turns += 1
            assert (await flood).endswith(b"hello")
            assert turns > 4_000, f"others had {turns} turns while 8,000 chunks went through"


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"GET http://a/ HTTP/1.1\r\nHost: a\r\n", b"CONNECT a:1 HTTP/1.1\r\n"]),
)
def test_whatever_is_sent_is_a_request_or_refused(data: bytes, before: bytes) -> None:
    head = (before + data).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    with contextlib.suppress(BadRequest, Refused):
        ask = parse_head(h11.Connection(h11.SERVER), head)
        assert ask.forward is None or dict(ask.forward.headers)[b"connection"] == b"close"


async def test_a_head_has_an_end_and_comes_in_time() -> None:
    async with proxied("site.example") as (_, place):
        long = b"GET http://site.example/ HTTP/1.1\r\nX: " + b"a" * 70_000
        assert (await asked(place, long, end=False)).startswith(b"HTTP/1.1 431 ")
        assert (await asked(place, b"GET http://site.example/" + b"a" * 70_000, end=False)).startswith(b"HTTP/1.1 431 ")
    async with proxied("site.example", head_s=0.1) as (proxy, place):
        assert (await asked(place, b"GET http://site", end=False)).startswith(b"HTTP/1.1 408 ")
        assert await asked(place, b"GET http://site") == b""  # it left
        assert await asked(place) == b""
        assert proxy.counts["refused"] == 1


# ---- who is refused --------------------------------------------------------------------------------------------------


async def test_a_name_that_is_not_allowed_is_not_even_looked_up() -> None:
    names = Names(evil_com=["1.1.1.1"])
    async with proxied("pypi.org", resolve=names) as (proxy, place):
        for request in (connect("evil.com", 443), get("http://evil.com/")):
            got = await asked(place, request)
            assert got.startswith(
                b"HTTP/1.1 403 rockroll: evil.com is not among the hosts that this sandbox may reach; "
            )
            assert b'can add "evil.com" to its network list' in got.partition(b"\r\n\r\n")[2]
        assert (names.asked, proxy.counts["refused"]) == ([], 2)
        assert [event.host for event in proxy.recent] == ["evil.com", "evil.com"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "fd00:ec2::254", "::ffff:127.0.0.1"]
)
async def test_an_allowed_name_that_leads_inside_is_refused(address: str) -> None:
    names = Names(rebound_example=[address])
    async with proxied("rebound.example", "*", resolve=names) as (proxy, place):
        got = await asked(place, connect("rebound.example", 443))
        assert got.startswith(b"HTTP/1.1 403 rockroll: rebound.example leads to ")
        assert b"which only an entry of its own opens" in got and proxy.recent[0].address == address.removeprefix(
            "::ffff:"
        )


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "169.254.169.254", "[::ffff:127.0.0.1]", "[64:ff9b::a00:1]", "0.0.0.0"]
)
async def test_an_address_that_is_written_out_is_refused_though_every_host_is_allowed(host: str) -> None:
    async with proxied("*:*") as (_, place):
        for request in (connect(host, 443), get(f"http://{host}/")):
            assert b"403 rockroll: " in (got := await asked(place, request)) and b"its own" in got


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "127.1", "0177.0.0.1", "127.0.0.1..", "[fe80::1%25lo]"])
async def test_so_is_an_odd_spelling_of_one(host: str) -> None:
    async with proxied("*:*") as (_, place):
        for request in (connect(host, 443), get(f"http://{host}/")):
            assert (await asked(place, request)).startswith(b"HTTP/1.1 403 rockroll: ")


async def test_only_the_address_that_was_checked_is_connected_to() -> None:
    """A name that leads outside and inside at once, and to another place each time: the open address is tried alone."""
    async with served(OK) as origin:
        answers = [["127.0.0.1"], ["10.0.0.1"], ["127.0.0.1"]]

        class Turning(Names):
            async def __call__(self, name: str, port: int) -> list[Address]:
                self.asked.append(name)
                return [ip_address(each) for each in answers[len(self.asked) - 1]]

        names = Turning()
        async with proxied("site.example:*", f"127.0.0.1:{origin.port}", resolve=names) as (proxy, place):
            for verdict in ("200", "403", "200"):
                got = await asked(place, get(f"http://site.example:{origin.port}/"))
                assert got.startswith(f"HTTP/1.1 {verdict}".encode())
            assert len(names.asked) == 3, "asked once a connection: what was checked is what is used"
        both = Names(site_example=["10.0.0.1", "192.168.0.1", "127.0.0.1"])
        async with proxied("site.example:*", f"127.0.0.1:{origin.port}", resolve=both) as (proxy, place):
            assert (await asked(place, get(f"http://site.example:{origin.port}/"))).endswith(b"hello")
            assert proxy.recent[0].address == "127.0.0.1"


async def test_this_hosts_own_addresses_are_closed_too() -> None:
    assert is_own(ip_address("127.0.0.1"))
    assert not is_own(ip_address("1.1.1.1")) and not is_own(ip_address("2606:4700::1111"))


# ---- what fails, and what is bounded ---------------------------------------------------------------------------------


async def test_what_cannot_be_reached_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    names = Names(site_example=["127.0.0.1", "127.0.0.2"], empty_example=[])
    async with proxied(f"*:{free}", f"127.0.0.0/8:{free}", resolve=names) as (proxy, place):
        for host, said in (
            ("site.example", b"cannot be reached from the host: Connect call failed"),
            ("none.example", b"cannot be reached from the host: Name or service not known"),
            ("empty.example", b"cannot be reached from the host: it has no address"),
        ):
            got = await asked(place, connect(host, free))
            assert got.startswith(b"HTTP/1.1 502 rockroll: ") and (said in got or b"Connection refused" in got)
        assert proxy.counts == {"allowed": 0, "refused": 0, "failed": 3}


async def test_a_name_server_that_does_not_answer_is_waited_for_so_long() -> None:
    class Silent(Names):
        async def __call__(self, name: str, port: int) -> list[Address]:
            return await asyncio.get_running_loop().create_future()

    async with proxied("site.example", resolve=Silent(), connect_s=0.1) as (_, place):
        assert (await asked(place, connect("site.example", 443))).startswith(
            b"HTTP/1.1 504 rockroll: site.example:443 "
        )


async def test_a_connection_without_a_byte_ends_and_one_with_some_goes_on() -> None:
    async with served(echo) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names, idle_s=0.8) as (proxy, place), asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(*place)
            writer.write(connect("site.example", origin.port))
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(10):
                await asyncio.sleep(0.1)
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            assert proxy.recent[0].reason == "closed after 0.8 s without a byte"
            writer.close()


async def test_connections_over_the_limit_wait_and_then_get_their_turn() -> None:
    async with served(echo) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names, connections=3) as (proxy, place), asyncio.timeout(20):
            streams = [await asyncio.open_connection(*place) for _ in range(5)]
            for _, writer in streams:
                writer.write(connect("site.example", origin.port))
            for reader, _ in streams[:3]:
                await reader.readuntil(b"\r\n\r\n")
            assert (len(proxy.live), origin.connections) == (3, 3)
            streams[0][1].write_eof()
            assert await streams[0][0].read() == b"end"
            await streams[3][0].readuntil(b"\r\n\r\n")
            assert len(proxy.live) == 3
            for _, writer in streams:
                writer.close()


async def test_shut_ends_everything_and_it_can_serve_again() -> None:
    async with served(echo) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names) as (proxy, place), asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(*place)
            writer.write(connect("site.example", origin.port))
            await reader.readuntil(b"\r\n\r\n")
            proxy.shut()
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*place)
            again = socket.create_server(("127.0.0.1", 0))
            proxy.serve(again)
            head = connect("site.example", origin.port)
            assert (await asked(again.getsockname(), head + b"x")).endswith(b"xend")
            writer.close()


async def test_forget_ends_connections_and_counts_from_zero_and_serves_on() -> None:
    async with served(echo) as origin:
        entries, names = local(origin)
        async with proxied(*entries, resolve=names, connections=1) as (proxy, place), asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(*place)
            writer.write(connect("site.example", origin.port))
            await reader.readuntil(b"\r\n\r\n")
            _, waiting = await asyncio.open_connection(*place)
            waiting.write(connect("evil.com", 443))
            proxy.forget()
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            assert (await asked(place, connect("site.example", origin.port) + b"x")).endswith(b"xend")
            while not proxy.recent:
                await asyncio.sleep(0.001)
            assert proxy.counts == {"allowed": 1, "refused": 0, "failed": 0} and len(proxy.events()) == 1
            writer.close()
            waiting.close()


# ---- the host's own resolver -----------------------------------------------------------------------------------------


async def test_names_are_looked_up_as_this_host_does() -> None:
    found = await Resolver()("localhost", 80)
    assert HERE in found and all(each.is_loopback for each in found)
    with pytest.raises(OSError):
        await Resolver()("no-such-host.invalid", 80)


async def test_a_lookup_that_is_left_alone_keeps_its_slot_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0

    def slow(*_: object, **__: object) -> list[object]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        import time

        time.sleep(0.05)
        running -= 1
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    resolver = Resolver()
    asking = [asyncio.ensure_future(resolver("slow.example", 80)) for _ in range(12)]
    await asyncio.sleep(0.01)
    for each in asking[:4]:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert most == 4
