"""The node: the process that holds this home's sandboxes and their model endpoints.

In: calls over rpc (rockroll/sandbox/wire/, `model.route` and `model.seat`). Out: their replies. It puts the sandbox
room's host and the model service's gateway together and leaves everything else to them. A warden (warden.py) stands
beside it.

    python -m rockroll.placement.node [--address unix://…] [--ready-fd N] [--idle 60]

    lock node/node.lock ──► host up ──► serving ──┬─ SIGTERM, SIGINT
                                                  └─ idle: no client and no sandbox for --idle seconds
                                                        ──► boxes of connections deleted, detached ones left running
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import uvloop

from rockroll import home, logs, rpc
from rockroll.errors import HostError, RockrollError
from rockroll.model_service.budget import Budget
from rockroll.model_service.gateway import NO_BUDGET, Gateway, box_environment
from rockroll.placement.guard import Guard
from rockroll.placement.member import Member, Membership
from rockroll.placement.seats import Seats, seat_name
from rockroll.sandbox import wire
from rockroll.sandbox.node.host import SandboxHost
from rockroll.sandbox.node_client import NODE_MODULE, address_path, log_path

ENDPOINT_PORT = 41414
"""Where a model answers inside each box (127.0.0.1): a port that no usual server takes."""
SEATS_PORT = 41420
"""Where one answers for the second agent of a box; the third's is the port after it. 41415 is the proxy's."""
IDLE_S = 60.0
PREDECESSOR_S = 60
"""How long a node waits for the one before it to finish deleting its boxes."""
_log = logging.getLogger(__name__)


class Seat(wire.Struct, frozen=True, kw_only=True):
    """One of several model endpoints of one box."""

    id: str
    seat: int
    """From 1 on: 0 is the one that every box has."""


class Route(wire.Struct, frozen=True, kw_only=True):
    """Where one box's model calls go from now on."""

    id: str
    upstream: str | None
    """A relay's address, or the http(s) URL of a server that speaks OpenAI's dialects; None: calls are refused."""
    token: str = ""
    """Names the episode to the relay; never shown in the box."""
    key: str = ""
    """The server's; never shown in the box."""
    speaks: list[str] = []
    """Dialects that the server speaks beside chat and completions."""
    tools: dict[str, str] = {}
    """MCP servers that the box may ask at /mcp/NAME: URLs, by name; never shown in the box."""
    budget: Budget = NO_BUDGET
    """What all calls under this route may use up together; the relay is told when one is refused for it."""
    seat: int = 0
    """Which of the box's endpoints: each has a route of its own. One beside the first ends with upstream None."""


class Node:
    """One node's life: `await Node(address).run(ready)` returns when it has ended and left nothing behind."""

    def __init__(self, address: str, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._over = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        command = [sys.executable, "-m", NODE_MODULE, "--address", address, "--idle", str(idle_s)]
        self._guard = Guard(home.node_dir(), log_path(), command)
        self._gateway = Gateway()
        self._host = SandboxHost(
            endpoint_port=ENDPOINT_PORT,
            on_endpoint=self._gateway.attach,
            on_endpoint_gone=self._endpoint_gone,
            on_removed=self._removed,
            env=lambda _: box_environment(ENDPOINT_PORT),
            hub=lambda: self._member.hub,
        )
        self._seats = Seats(self._gateway, self._host.listen, ENDPOINT_PORT, SEATS_PORT)
        handlers: dict[str, rpc.Handler] = {
            **self._host.handlers(),
            "model.route": self._route,
            "model.seat": self._seat,
        }
        own = {"model.route": Route, "model.seat": Seat, "node.join": Membership, "node.leave": wire.Empty}
        self._server = rpc.Server(
            address,
            handlers,
            types={**wire.BODIES, **own},
            on_disconnect=self._client_gone,
        )
        self._member = Member(self._server, self._host.summary, self._watch_idle)
        self._server.add(self._member.handlers())

    async def run(self, ready: int | None = None) -> None:
        """Serves until idle or told to end. "ready\\n" goes to the descriptor `ready` once calls are answered."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, signal.Signals(number).name)
        await self._host.start()
        wake: float | None = None
        try:
            await self._server.start()
            try:
                await self._serve(ready)
                wake = self._host.next_end()
            finally:
                self._over.set()
                await self._member.close()
                await self._server.close()
                await asyncio.gather(*self._leaving)
        finally:
            await self._host.close()
            await self._gateway.close()
            self._guard.end(wake)
            _log.info("ended")

    async def _serve(self, ready: int | None) -> None:
        address_path().write_text(self._server.address)
        self._guard.start()
        self._member.resume()
        _log.info("serving at %s", self._server.address)
        if ready is not None:
            os.write(ready, b"ready\n")
            os.close(ready)
        self._watch_idle()
        try:
            await self._over.wait()
        finally:
            address_path().unlink(missing_ok=True)
            if self._timer is not None:
                self._timer.cancel()

    def _end(self, why: str) -> None:
        _log.info("ending: %s", why)
        self._over.set()

    async def _seat(self, body: Seat, _peer: rpc.Peer) -> dict[str, str]:
        """Opens it; what tells clients in the box where it is."""
        return box_environment(await self._seats.open(self._host.resolve(body.id), body.seat))

    async def _route(self, body: Route, _peer: rpc.Peer) -> str | None:
        id = self._host.resolve(body.id)
        if not body.seat and body.upstream is not None:
            self._seats.gone(id)  # of an episode that was cancelled
        if body.seat and not self._seats.has(id, body.seat) and body.upstream is None:
            return None
        over = self._gateway.route(
            seat_name(id, body.seat),
            body.upstream,
            body.token,
            body.budget,
            key=body.key,
            speaks=body.speaks,
            tools=body.tools,
        )
        if body.upstream is None and body.seat:
            self._seats.close(id, body.seat)
        return over

    def _endpoint_gone(self, sandbox_id: str) -> None:
        self._gateway.shut(sandbox_id)
        self._seats.gone(sandbox_id)

    def _client_gone(self, peer: rpc.Peer) -> None:
        """Its boxes go, in a task of the node's own: the server cancels its tasks when it closes, and a removal that is
        cut short leaves a container."""
        if self._over.is_set():
            return  # host.close() removes them
        task = asyncio.get_running_loop().create_task(self._host.on_disconnect(peer))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        self._watch_idle()

    def _removed(self, sandbox_id: str) -> None:
        self._gateway.forget(sandbox_id)
        self._seats.gone(sandbox_id)
        self._watch_idle()

    def _watch_idle(self) -> None:
        """Looks again --idle seconds from now. Called whenever a client or a sandbox has gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if not self._server.peers and not self._host.count() and not self._member.joined:
            self._end(f"no client and no sandbox for {self._idle_s:g} s")


@contextlib.contextmanager
def only_node() -> Iterator[None]:
    """One node a home, by a file lock; waits for a predecessor that is just ending. HostError where it does not end."""
    with (home.node_dir() / "node.lock").open("w") as file:

        def give_up(*_: Any) -> None:
            raise HostError(f"another node holds {file.name} and does not end; see {home.node_dir() / 'node.log'}")

        before = signal.signal(signal.SIGALRM, give_up)
        signal.alarm(PREDECESSOR_S)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rockroll.placement.node", description="The process that holds sandboxes."
    )
    parser.add_argument("--address", default=home.node_address(), help="where to serve: unix://PATH")
    parser.add_argument("--ready-fd", type=int, help="a descriptor that is told when calls are answered")
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds without a client and a sandbox")
    arguments = parser.parse_args()
    if arguments.ready_fd is not None:
        os.set_inheritable(arguments.ready_fd, False)
        if os.fork():
            # Started by somebody: leave, so that the node is nobody's zombie and `podman unshare` does not wait here.
            os._exit(0)
    logs.begin()
    try:
        with only_node():
            uvloop.run(_run(arguments.address, arguments.idle, arguments.ready_fd))
    except RockrollError as error:
        sys.exit(f"rockroll node: {error}")


async def _run(address: str, idle_s: float, ready: int | None) -> None:
    await Node(address, idle_s).run(ready)


if __name__ == "__main__":
    main()
