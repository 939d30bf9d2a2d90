"""The hub: the one process of a cluster that listens. Nodes and clients dial out to it.

In: trunks (rpc/trunk.py). Out: their messages, brought to each other unread; which node a box is placed on, which one
holds it; who is there, and who is gone. Leaves the boxes to the nodes, whose registries are the truth: a hub that is
started anew knows what they tell it when they dial again, and the calls between clients and nodes go on. Which nodes
there are it knows from FILE.nodes (hub_roster.py), and waits for them.

    python -m rockroll.placement.hub --address tcp://IP:PORT --file FILE

    node    joined ──► up ◄──► suspect (unheard for SUSPECT_S, or cut for RETURN_S) ──► forgotten after FORGET_S
    client  heard ──► gone: it said so, its connection ended and did not return, or it was unheard for OWNER_S
                        └──► every node is told, and removes what it owned; and who has asked after it
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

from rockroll import logs, rpc
from rockroll.errors import HostError, RockrollError, UsageError
from rockroll.placement.hub_images import HubImages
from rockroll.placement.hub_placing import HubPlacing
from rockroll.placement.hub_roster import Roster
from rockroll.release import VERSION
from rockroll.rpc.departures import GONE, Notices
from rockroll.rpc.keys import public_of
from rockroll.rpc.line import Line
from rockroll.rpc.switch import Switch
from rockroll.sandbox.cluster import wire
from rockroll.sandbox.cluster.file import ClusterFile
from rockroll.sandbox.cluster.presence import LOOK_S, Presence
from rockroll.sandbox.cluster.scheduler import Policy, Scheduler
from rockroll.sandbox.wire import Empty

_log = logging.getLogger(__name__)


class Hub:
    """`await run()` returns when it has been told to end."""

    def __init__(self, address: str, file: Path, policy: Policy = "spread", overcommit: float = 32.0) -> None:
        self._file = file
        self._key = file.with_name(file.name + ".key")
        self._switch = Switch(_address(address, file), self._key, on_line=self._line, on_cut=self._cut)
        self._scheduler = Scheduler(policy, overcommit)
        self._presence = Presence()
        self._members: dict[bytes, str] = {}
        """Trunk → node."""
        self._trunks: dict[str, bytes] = {}
        self._told: dict[bytes, asyncio.Queue[wire.Told]] = {}
        self._over = asyncio.Event()
        self._images = HubImages(self._scheduler)
        self._roster = Roster(file.with_name(file.name + ".nodes"))
        self._placing = HubPlacing(self._scheduler, self._trunks, self._switch.heard, self._roster, self._notify)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._notices = Notices(self._is_gone, self._expect)
        self._server = rpc.Server(
            "the hub",
            {
                "node.join": self._join,
                "node.report": self._report,
                "node.leave": self._leave_cluster,
                "cluster.bye": self._bye,
                GONE: self._notices.wait,
                **self._placing.handlers(),
                **self._images.handlers(),
            },
            types={**wire.BODIES, GONE: bytes},
        )

    async def run(self, ready: int | None = None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._over.set)
        self._switch.start()
        try:
            ClusterFile(hub=self._switch.address, server_key=public_of(self._key)).write(self._file)
            _log.info("hub at %s, for whoever has %s", self._switch.address, self._file)
            if ready is not None:
                os.write(ready, b"ready\n")
                os.close(ready)
            self._look()
            await self._over.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._server.close()
            self._switch.close()

    # -- who is there

    def _line(self, trunk: bytes, line: Line) -> None:
        peer = self._server.join(trunk.hex(), line)
        line.on_frame = lambda data: self._server.hear(peer, data)
        line.on_ended = lambda: self._server.hush(peer)

    def _cut(self, trunk: bytes) -> None:
        self._presence.cut(trunk, self._loop.time())

    def _look(self) -> None:
        """Who has not been heard for too long. By a clock: silence is no event."""
        self._timer = self._loop.call_later(LOOK_S, self._look)
        now, heard = self._loop.time(), self._switch.heard
        changed = False
        for trunk, name in tuple(self._members.items()):
            node = self._scheduler.nodes[name]
            state = self._presence.node(trunk, now, heard.get(trunk, 0.0))
            if state == "forgotten":
                _log.warning("node %s has not been heard for so long that it is forgotten", name)
                self._forget(trunk)
                changed = True
            elif (state == "suspect") != (node.state == "suspect"):
                _log.warning("node %s is %s", name, "not heard" if state == "suspect" else "heard again")
                calm = "draining" if name in self._roster.drained else "up"
                self._scheduler.mark(name, "suspect" if state == "suspect" else calm)
                changed = True
        clients = [trunk for trunk in heard if trunk not in self._members]
        if gone := self._presence.gone({trunk: heard[trunk] for trunk in clients}, now):
            self._gone(gone)
        self._roster.look()
        if changed:
            self._notify()

    def _gone(self, clients: list[bytes]) -> None:
        for trunk in clients:
            self._presence.bury(trunk)
            self._switch.forget(trunk)
            self._leave(trunk)
        for queue in self._told.values():
            queue.put_nowait(wire.Told(gone=clients))
        self._notices.tell(clients)

    def _is_gone(self, trunk: bytes) -> bool:
        """One that has come back is not."""
        return self._presence.is_buried(trunk) and trunk not in self._switch.heard

    def _expect(self, trunk: bytes) -> None:
        if trunk not in self._switch.heard:
            self._presence.expect(trunk, self._loop.time())

    def _leave(self, trunk: bytes) -> None:
        for peer in self._server.peers:
            if peer.id == trunk.hex():
                self._server.leave(peer)

    def _forget(self, trunk: bytes) -> None:
        """A node is gone."""
        name = self._members.pop(trunk)
        self._trunks.pop(name, None)
        self._roster.left(name)
        self._told.pop(trunk, None)
        self._scheduler.leave(name)
        self._presence.bury(trunk)
        self._switch.forget(trunk)
        self._leave(trunk)

    def _notify(self) -> None:
        self._images.look()
        self._placing.notify()

    # -- of nodes

    async def _join(self, body: wire.Join, peer: rpc.Peer) -> AsyncIterator[wire.Told]:
        trunk = bytes.fromhex(peer.id)
        if body.version != VERSION:
            raise HostError(
                f"node {body.name} runs rockroll {body.version} and the hub {VERSION}; install the same on both"
            )
        before = self._trunks.get(body.name)
        if before is not None and before != trunk:
            if self._scheduler.nodes[body.name].state != "suspect" and self._switch.probe(before):
                raise UsageError(
                    f"name: a node called {body.name} is in this cluster; join with another one: --name NAME"
                )
            self._forget(before)
        self._members[trunk], self._trunks[body.name] = body.name, trunk
        queue = self._told[trunk] = asyncio.Queue()
        self._scheduler.join(body.name, body.cpus, body.memory, body.pids, body.images, body.load)
        for row in body.boxes:
            self._scheduler.put(body.name, row)
        self._roster.joined(body.name, trunk)
        if body.name in self._roster.drained:
            self._scheduler.mark(body.name, "draining")
        gone = [each for each in body.clients if self._is_gone(each)]
        for client in set(body.clients).difference(gone):
            self._expect(client)
        _log.info("node %s joined with %d boxes", body.name, len(body.boxes))
        self._scheduler.dispatch()
        self._notify()
        yield wire.Told(gone=gone)
        while True:
            yield await queue.get()

    async def _leave_cluster(self, _body: Empty, peer: rpc.Peer) -> None:
        trunk = bytes.fromhex(peer.id)
        if trunk in self._members:
            _log.info("node %s leaves", self._members[trunk])
            self._loop.call_later(0.05, self._left, trunk)  # once it has the answer

    def _left(self, trunk: bytes) -> None:
        if trunk in self._members:
            self._forget(trunk)
            self._notify()

    async def _report(self, body: wire.Report, peer: rpc.Peer) -> None:
        name = self._members.get(bytes.fromhex(peer.id))
        if name is None:
            raise HostError("this node is no member of the cluster; it has to join first")
        for id in body.gone:
            self._scheduler.gone(id)
        for row in body.put:
            self._scheduler.put(name, row)
        if body.images is not None:
            self._scheduler.nodes[name].images = set(body.images)
        self._scheduler.say(name, body.load)
        self._scheduler.dispatch()
        self._images.look()

    # -- of clients

    async def _bye(self, _body: Empty, peer: rpc.Peer) -> None:
        self._loop.call_later(0.05, self._gone, [bytes.fromhex(peer.id)])  # once it has the answer


def _address(asked: str, file: Path) -> str:
    """Port 0 is the one that this cluster had before, where it had one: its nodes dial there."""
    host, _, port = asked.removeprefix("tcp://").rpartition(":")
    if not asked.startswith("tcp://") or not host or not port.isdigit():
        raise UsageError(f"address: tcp://IP:PORT of this machine, as others reach it; got {asked!r}")
    if port == "0" and file.exists():
        before = ClusterFile.read(file).hub
        if before.rpartition(":")[0] == f"tcp://{host}":
            return before
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rockroll.placement.hub", description="The hub of a cluster.")
    parser.add_argument(
        "--address", required=True, help="tcp://IP:PORT of this machine, as others reach it; PORT 0: any"
    )
    parser.add_argument("--file", required=True, type=Path, help="where to write what nodes and clients need")
    parser.add_argument("--policy", choices=("spread", "pack"), default="spread")
    parser.add_argument("--overcommit", type=float, default=32.0, help="CPUs granted for each that a node has")
    parser.add_argument("--ready-fd", type=int, help="a descriptor that is told when it serves")
    arguments = parser.parse_args()
    logs.begin()

    async def run() -> None:
        hub = Hub(arguments.address, arguments.file, arguments.policy, arguments.overcommit)
        await hub.run(arguments.ready_fd)

    try:
        uvloop.run(run())
    except RockrollError as error:
        sys.exit(f"rockroll hub: {error}")


if __name__ == "__main__":
    main()
