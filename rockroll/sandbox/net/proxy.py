"""The HTTP proxy that listens in one sandbox: the only way out of `network: [host, …]`.

In: a listening socket inside the sandbox, its Policy. Out: connections from the host to what the policy names, bytes
both ways; 403 with a sentence for all others; counts, and the last connections. Leaves verdicts to network.py, the
reading of requests to request.py, plain HTTP to exchange.py, the socket's making to egress.py.

    accept ─► head ─► name allowed? ─► resolve ─► address allowed? ─► connect to that address ─┬─ CONNECT: bytes
                         │ 403             │ 502        │ 403              │ 502, 504            └─ one request

Every connection carries one request: what follows its body is never read as another. What a sandbox can take from the
host is bounded: connections, lookups, the size of a head, and the time that a connection stays without a byte.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import socket
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass

import h11

from rockroll.sandbox.linux.streams import CHUNK, Streams, connect, streams
from rockroll.sandbox.net.exchange import NotHttp, exchange
from rockroll.sandbox.net.request import MAX_HEAD, Ask, BadRequest, parse_head
from rockroll.sandbox.net.resolve import Resolve, Resolver, is_own
from rockroll.sandbox.network import Address, Host, Policy, Refused, plain
from rockroll.sandbox.wire import NetworkEvent

KEPT = 200
"""Connections that are remembered, the last ones."""
ADDRESSES = 4
"""Addresses of one name that are tried, one after the other."""
LINGER_S, LINGER_BYTES = 2.0, 1 << 20
"""After an answer that comes before the whole request: a socket closed on unread bytes takes the answer with it."""
ACCEPT_AGAIN_S = 1.0
"""After accept() found no free file descriptor; nothing tells when one is free again."""
SENTENCE, LONGEST_METHOD = 400, 20
"""Characters that are kept of a reason and of a method."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one sandbox."""

    connections: int = 64
    """Open at once; a further one waits, unaccepted."""
    head_s: float = 30
    """From a connection's beginning to the end of its request's head."""
    connect_s: float = 20
    """To look a host up and connect to it; each of its addresses gets an equal share."""
    idle_s: float = 300
    """Without a byte either way."""


class Proxy:
    """serve ─► shut ─► serve … : one sandbox's, across its restarts. Belongs to one event loop.

    resolve: what addresses a name has; the host's own resolver where None.
    """

    def __init__(self, policy: Policy, *, resolve: Resolve | None = None, limits: Limits | None = None) -> None:
        self._policy, self._limits = policy, limits or Limits()
        self._resolve = resolve or Resolver()
        self._slots = asyncio.Semaphore(self._limits.connections)
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._sock: socket.socket | None = None
        self.counts = _zero()
        """Connections that have ended, by verdict."""
        self.live: dict[_Connection, None] = {}
        self.recent: collections.deque[NetworkEvent] = collections.deque(maxlen=KEPT)

    def serve(self, sock: socket.socket) -> None:
        """Answers at `sock`, which listens and is the proxy's from now on."""
        self.shut()
        sock.setblocking(False)
        self._sock = sock
        self._accepting = self._spawn(self._accept(sock), sock)

    def shut(self) -> None:
        """Ends the socket and every connection at once. A second time does nothing."""
        if self._accepting:
            self._accepting.cancel()
        self._sock = self._accepting = None
        self._end_connections()

    async def close(self) -> None:
        """`shut`, and waits until nothing of it runs any more."""
        self.shut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def forget(self) -> None:
        """Ends every connection, those that wait to be accepted too, and counts from zero."""
        self._end_connections()
        while self._sock:
            try:
                self._sock.accept()[0].close()
            except OSError:
                break
        self.counts, self.live = _zero(), {}
        self.recent.clear()

    def events(self) -> list[NetworkEvent]:
        """The last connections, those that are open at the end."""
        return [*self.recent, *(each.event(open=True) for each in self.live)]

    def _end_connections(self) -> None:
        for task in self._tasks:
            if task is not self._accepting:
                task.cancel()

    def _spawn(self, work: Coroutine[None, None, None], sock: socket.socket) -> asyncio.Task[None]:
        """The socket is closed with the task, also when that is cancelled before its first step."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: sock.close())
        return task

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                connection, _ = await loop.sock_accept(sock)
            except OSError as error:
                self._slots.release()
                _log.error("proxy: no connection can be accepted: %s; trying again", error)
                await asyncio.sleep(ACCEPT_AGAIN_S)
            except BaseException:
                self._slots.release()
                raise
            else:
                self._spawn(self._serve(connection), connection).add_done_callback(lambda _: self._slots.release())

    async def _serve(self, sock: socket.socket) -> None:
        try:
            async with streams(sock, limit=MAX_HEAD) as client:
                await _Connection(self, client).serve()
        except (OSError, EOFError):
            pass  # it left
        except Exception:  # noqa: BLE001 - a bug ends one connection only, and is seen
            _log.exception("proxy: a connection could not be served")


def _zero() -> dict[str, int]:
    return {"allowed": 0, "refused": 0, "failed": 0}


class _Connection:
    """One connection of a program in the sandbox."""

    def __init__(self, proxy: Proxy, client: Streams) -> None:
        self._proxy, self._client = proxy, client
        self._begun = time.time()
        self._host: Host = ""
        self._port = 0
        self._method, self._address = "", ""
        self._origin: Streams | None = None

    def event(self, *, open: bool, verdict: str = "allowed", reason: str = "") -> NetworkEvent:
        return NetworkEvent(
            time=self._begun,
            method=self._method[:LONGEST_METHOD],
            host=str(self._host),
            port=self._port,
            address=self._address,
            verdict=verdict,  # type: ignore[arg-type]
            reason=reason,
            sent_bytes=self._origin.sent if self._origin else 0,
            received_bytes=self._origin.received if self._origin else 0,
            open=open,
        )

    async def _end(self, verdict: str, status: int, said: str) -> None:
        sentence = _sentence(said)
        self._tell(verdict, sentence)
        await self._say(status, sentence)

    def _tell(self, verdict: str, reason: str = "") -> None:
        self._proxy.counts[verdict] += 1
        self._proxy.recent.append(self.event(open=False, verdict=verdict, reason=reason))

    async def serve(self) -> None:
        limits = self._proxy._limits
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        try:
            ask = await self._ask(http)
            if ask is None:
                return
            self._host, self._port = ask.host, ask.port
            self._method = ask.forward.method.decode() if ask.forward else "CONNECT"
            origin = await self._connect(ask)
        except (BadRequest, Refused) as error:
            return await self._end("refused", error.status if isinstance(error, BadRequest) else 403, str(error))
        except TimeoutError:
            said = f"{self._host}:{self._port} did not answer within {limits.connect_s:g} s"
            return await self._end("failed", 504, said)
        except OSError as error:
            said = f"{self._host}:{self._port} cannot be reached from the host: {error.strerror or error}"
            return await self._end("failed", 502, said)
        live = self._proxy.live
        live[self] = None
        verdict, reason = "allowed", ""
        try:
            await self._carry(ask, http, origin)
        except NotHttp as error:
            verdict, reason = "failed", _sentence(f"{self._host}:{self._port} did not answer in HTTP: {error}")
            await self._say(502, reason)
        except TimeoutError:
            reason = f"closed after {limits.idle_s:g} s without a byte"
            raise
        except OSError as error:
            reason = f"broken off: {error.strerror or error}"
            raise
        finally:
            if live is self._proxy.live:  # else the proxy was made to forget meanwhile
                del live[self]
                self._tell(verdict, reason)

    async def _carry(self, ask: Ask, http: h11.Connection, connected: socket.socket) -> None:
        idle_s, loop = self._proxy._limits.idle_s, asyncio.get_running_loop()
        try:
            async with streams(connected) as self._origin, asyncio.timeout(idle_s) as idle:
                self._client.moved = self._origin.moved = lambda: idle.reschedule(loop.time() + idle_s)
                if ask.forward is None:
                    await self._tunnel(self._origin)
                elif not await exchange(http, ask.forward, self._client, self._origin):
                    await self._linger()
        finally:
            self._client.moved = lambda: None

    async def _ask(self, http: h11.Connection) -> Ask | None:
        """The request; None where the program left without one."""
        try:
            async with asyncio.timeout(self._proxy._limits.head_s):
                head = await self._client.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError:
            raise BadRequest(f"the head of a request has at most {MAX_HEAD} bytes", 431) from None
        except TimeoutError:
            raise BadRequest(f"the request did not come within {self._proxy._limits.head_s:g} s", 408) from None
        return parse_head(http, head)

    async def _connect(self, ask: Ask) -> socket.socket:
        """A socket that is connected to an address which was found fit. Raises Refused, TimeoutError, OSError."""
        policy, limits = self._proxy._policy, self._proxy._limits
        policy.check(ask.host, ask.port)
        async with asyncio.timeout(limits.connect_s):
            if isinstance(ask.host, str):
                found = await self._proxy._resolve(ask.host, ask.port)
            else:
                found = [ask.host]
            addresses = self._fit(ask, found)[:ADDRESSES]
            last: OSError = OSError("it has no address")
            for address in addresses:
                self._address = str(address)
                try:
                    async with asyncio.timeout(limits.connect_s / len(addresses)):
                        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
                        return await connect(socket.socket(family, socket.SOCK_STREAM), str(address), ask.port)
                except OSError as error:  # TimeoutError is one
                    last = error
            raise last

    def _fit(self, ask: Ask, found: Sequence[Address]) -> list[Address]:
        """Those that may be reached. Raises Refused where there are only others."""
        policy, fit, refused = self._proxy._policy, [], None
        for address in map(plain, found):
            try:
                policy.check_address(ask.host, address, ask.port)
                if is_own(address) and not policy.names(address, ask.port):
                    raise Refused(
                        f"{ask.host} is {address}, this host's own address, which only an entry of its own opens;"
                        f' whoever starts the sandbox can add "{address}" to its network list'
                    )
                fit.append(address)
            except Refused as error:
                self._address, refused = str(address), refused or error
        if refused and not fit:
            raise refused
        return fit

    async def _tunnel(self, origin: Streams) -> None:
        await self._client.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._client.pump(origin))
                both.create_task(origin.pump(self._client))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _say(self, status: int, said: str) -> None:
        """An answer of the proxy's own. The sentence is in the reason too: of what comes after a CONNECT that failed,
        most clients show that alone."""
        body = f"rockroll: {said}\n".encode()
        head = (
            f"HTTP/1.1 {status} rockroll: {said}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        await self._client.write(head.encode() + (b"" if self._method == "HEAD" else body))
        await self._linger()

    async def _linger(self) -> None:
        self._client.end()
        taken = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while taken < LINGER_BYTES and (data := await self._client.reader.read(CHUNK)):
                    taken += len(data)


def _sentence(said: str) -> str:
    """Fit for a status line: what a program or a host wrote may be in it."""
    text = "".join(each if each.isascii() and each.isprintable() else "?" for each in said)
    return text if len(text) <= SENTENCE else f"{text[:SENTENCE]}..."
