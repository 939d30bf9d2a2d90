"""The driver's half of a process on another node: its place, its files, its life.

In: a link to the node's host (host.py). Out: a `Place` and a `Process` as of local.py, so that nobody else knows where
it runs; a death, or within 5 s the loss of the node, as ProcessDied with the end of the log. Leaves choosing the node
to places.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from rockroll import rpc
from rockroll.append import write_whole
from rockroll.errors import PeerLost, ProcessDied, RockrollError
from rockroll.placement.local import OnDeath, Place, Process, Processes, death, log_end
from rockroll.placement.on_ray import trees
from rockroll.placement.on_ray.host import CONFIG, Fetch, Life, Run, Versions
from rockroll.placement.usage import Usage

SILENT_S = 4.5
"""A host says every second that it is there; so long without a word, and its node counts as lost."""
AGAIN_S = 2.0
"""How long a connection that broke has to be made again, before the node counts as lost."""


class Spot(msgspec.Struct, frozen=True):
    """Where a host came to be."""

    node: str
    pid: int
    """Of the actor that holds the process."""
    ip: str
    address: str
    ports: tuple[int, int]
    folder: str
    versions: Versions
    host: str = ""

    @property
    def name(self) -> str:
        """Of the node, as its sandboxes have it (keeper.py)."""
        return f"{self.host}-{self.node[:8]}"


class Files:
    """Which folders of the run are newest on which place, and how this machine gives its own away."""

    def __init__(self, ip: str, key: Path, scratch: Path) -> None:
        """scratch: where what other machines have is kept here while it is read."""
        self.key, self.scratch = key, scratch
        self._server = rpc.Server(f"tcp://{ip}:0", trees.handlers(), types=trees.TYPES, key=key)
        self.newest: dict[str, FarPlace] = {}

    async def start(self) -> None:
        await self._server.start()

    @property
    def address(self) -> str:
        return self._server.address

    async def close(self) -> None:
        await self._server.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


class FarPlace(Place):
    def __init__(
        self,
        processes: Processes,
        name: str,
        spot: Spot,
        link: rpc.Client,
        files: Files,
        log: Path,
        *,
        here: str,
        on_lost: Callable[[FarPlace, ProcessDied], None],
    ) -> None:
        """here: the ipc address of a process on this very machine; "" for another one. on_lost: told when its node is
        lost, before anybody else is."""
        super().__init__(processes, name, here or f"tcp://{spot.ip}:{spot.ports[0]}")
        self.spot, self.link = spot, link
        self._files, self._log, self._here, self.on_lost = files, log, bool(here), on_lost
        self.where = f"node {spot.ip}"
        self.machine = "here" if here else spot.node
        self.key = None if here else files.key
        self.their_key = "" if here else str(Path(spot.folder) / "rpc.key")
        self.process: FarProcess | None = None
        self.movable = False
        """Whether its process is one that is replaced when it ends."""

    @property
    def here(self) -> bool:
        return self._here

    async def reads(self, path: str, *, keep: bool = False) -> str:
        source = self._files.newest.get(path)
        if source is not None and source.spot.node == self.spot.node:
            return source.writes(path)
        name = "" if keep else hashlib.sha256(path.encode()).hexdigest()[:8]
        if self._here:
            if source is None:
                return path
            return str(await trees.fetch_latest(source.link, source.writes(path), self._files.scratch / name))
        if source is None:
            asked = Fetch(self._files.address, path, name)
        else:
            asked = Fetch(source.spot.address, source.writes(path), name)
        return await self.link.call("fetch", asked, type=str)

    def writes(self, path: str) -> str:
        if self._here:
            return path
        return str(Path(self.spot.folder) / "out" / Path(path).name)

    def wrote(self, path: str) -> None:
        if self._here:
            self._files.newest.pop(path, None)
        else:
            self._files.newest[path] = self

    async def bring(self, path: str, to: Path) -> None:
        if self._here:
            return await super().bring(path, to)
        incoming = to.with_name(to.name + ".incoming.partial")
        try:
            (await trees.fetch(self.link, self.writes(path), incoming)).rename(to)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        await self.link.call("drop", self.writes(path))

    @property
    def ended(self) -> asyncio.Task[None] | None:
        """Done at its process's end; None: there is none yet."""
        return self.process.ended if self.process else None

    @property
    def usage(self) -> Usage | None:
        """What its process takes there, as it has last said; None: it has not."""
        life = self.process.life if self.process else None
        return Usage(self.name, self.spot.name, life.cpu_s, life.memory) if life else None

    def meeting(self) -> str:
        return f"tcp://{self.spot.ip}:{self.spot.ports[1]}"

    async def leave(self) -> None:
        """Nothing of the run is left there, if its node is there to be asked; else it clears up by itself."""
        if self.process is not None:
            await self.process.stop()
        if self.process is None or not self.process.lost:
            try:
                await self.link.call("leave", timeout=2)
            except (RockrollError, TimeoutError):
                pass
        await self.link.close()

    async def start(self, module: str, config: Any, *args: str, on_death: OnDeath | None = None) -> Process:
        data = json.dumps(dataclasses.asdict(config), indent=1).encode()
        write_whole(self._log.with_suffix(".json"), data)
        run = Run(
            name=self.name,
            module=module,
            args=["--config", CONFIG, *args],
            config=data,
            env=dict(os.environ) if self._here else {},
            whole=self._here,
        )
        await self.link.call("run", run, type=int)
        self.movable = on_death is not None
        self.process = FarProcess(self, self._log, on_death or self._processes.fail)
        return self.process


class FarProcess:
    """A child of another node's host.

    followed ──► ended by `stop`                  nothing is said
        ├──► died by itself                       on_death: how, where, the end of its log
        ├──► ended by `move`                      on_death: that its node is about to go
        └──► its node is not heard of any more    on_death: that
    """

    def __init__(self, place: FarPlace, log: Path, on_death: OnDeath) -> None:
        self._place, self._log, self._on_death = place, log, on_death
        self._offset = 0
        self._stopping = False
        self.lost = False
        """Its node is not heard of any more: nobody is there to be asked."""
        self.life: Life | None = None
        """The last sign of it."""
        self.ended = asyncio.ensure_future(self._follow())
        """Done when nothing is heard of it any more, for whatever reason."""

    async def stop(self) -> None:
        """Its node has ended it, or is not there to be asked."""
        self._stopping = True
        link = self._place.link
        if not self.ended.done() and link.closed is None:
            asked = asyncio.ensure_future(link.call("stop", timeout=10))
            try:
                # the loss of its node may be under way to be known: a call to it would wait until its own time is over
                await asyncio.wait([asked, self.ended], return_when=asyncio.FIRST_COMPLETED)
                if asked.done() and asked.exception() is None:
                    await asyncio.wait([self.ended], timeout=2)  # the rest of its log
            finally:
                asked.cancel()  # else the host ends it by itself, once it is alone
                await asyncio.gather(asked, return_exceptions=True)
        await self.leave()

    async def move(self) -> None:
        """It is ended, and whoever replaces it is told, before its node goes."""
        if self._stopping or self.ended.done():
            return
        place = self._place
        why = f"Ray drains {place.where}, where {place.name} ran"
        self._on_death(ProcessDied(why, name=place.name, node=place.spot.ip, cause="drained"))
        await self.stop()

    async def leave(self) -> None:
        """No more is asked of it."""
        self._stopping = True
        self.ended.cancel()
        await asyncio.gather(self.ended, return_exceptions=True)

    async def _follow(self) -> None:
        error: ProcessDied
        while True:
            try:
                code = await self._followed()
                error = death(self._place.name, code, self._log, where=f" on {self._place.where}")
                break
            except (PeerLost, TimeoutError) as broken:
                if isinstance(broken, PeerLost) and await self._again():
                    continue
                error = self._lost(broken)
                break
            except RockrollError as refused:
                error = self._lost(refused)
                break
        self.lost = error.fields.get("cause") == "node_lost"
        if not self._stopping:
            if self.lost:
                self._place.on_lost(self._place, error)
            self._on_death(error)

    async def _followed(self) -> int:
        """Its exit code; its log is written here as it comes."""
        with self._log.open("ab") as log:
            async with aclosing(self._place.link.stream("life", self._offset, type=Life)) as lives:
                while True:
                    async with asyncio.timeout(SILENT_S):
                        life = await anext(lives, None)
                    if life is None:
                        raise PeerLost(f"{self._place.where} stopped telling of {self._place.name}")
                    self.life = life
                    log.write(life.log)
                    log.flush()
                    self._offset += len(life.log)
                    if life.code is not None:
                        return life.code

    async def _again(self) -> bool:
        try:
            await self._place.link.call("there", timeout=AGAIN_S)
        except (RockrollError, TimeoutError):
            return False
        return True

    def _lost(self, why: BaseException) -> ProcessDied:
        said = (
            "nothing was heard of it" if isinstance(why, TimeoutError) else "its connection broke and did not come back"
        )
        place = self._place
        return ProcessDied(
            f"{place.where}, where {place.name} ran, is lost: {said}{log_end(self._log)}",
            name=place.name,
            node=place.spot.ip,
            cause="node_lost",
        )


def check_versions(spot: Spot, mine: Versions) -> str:
    """Why that node cannot take part, in one sentence; "": it can."""
    for what in ("rockroll", "python", "torch"):
        theirs, ours = getattr(spot.versions, what), getattr(mine, what)
        if theirs != ours:
            return (
                f"node {spot.ip} has {what} {theirs} and this one {ours}; install the same on every node "
                "(rockroll doctor --ray shows all)"
            )
    return ""


async def watch_port(ip: str, port: int, on_gone: Callable[[], None]) -> None:
    """Calls `on_gone` when nothing listens there any more, or its machine does not answer: known by a connection that
    says nothing, and is made again where the other side only tired of it."""
    import socket

    while True:
        try:
            async with asyncio.timeout(3):
                reader, writer = await asyncio.open_connection(ip, port)
        except (OSError, TimeoutError):
            return on_gone()
        sock: socket.socket = writer.get_extra_info("socket")
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            while await reader.read(1 << 12):
                pass
        except OSError:
            pass
        finally:
            writer.close()
